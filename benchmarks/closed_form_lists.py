"""Times lists of concepts at Stable Diffusion 1.4 size, ours and the textbook.

UCE (2023) of one artist with 1,733 others preserved, and of 100, 1,000 and
10,000 concepts at once. Random weights, as in `closed_form_sd14`. Encoding is
timed on `--encoded` phrases; the other text states are made up, with the mean
and the spread of those, which lie as close to each other as CLIP's do.

The textbook is the same edit one projection at a time, its sums included, in
float64 and, as published, in float32; on one projection of each of `--widths`.
All 32 take 10, 10 and 12 times as long.

  python benchmarks/closed_form_lists.py --out=benchmarks/results/x.json

2 CPU cores: ten minutes, half of them making up states. Threads as in
`closed_form_sd14`.
"""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import closed_form_sd14 as sd14
import jax
import numpy as np
from absl import app, flags

from unlearning_jax import closed_form, edits, lists
from unlearning_jax.erasures import uce
from unlearning_jax.projections import cross_attention_kernels, projection_gram

ENCODED = flags.DEFINE_integer("encoded", 64, "Phrases that are encoded.")
LIST_SIZES = flags.DEFINE_multi_integer(
  "concepts", [100, 1_000, 10_000], "How many to erase at once."
)
TEXTBOOK = flags.DEFINE_integer(
  "textbook", 1_000, "Lists of more concepts are timed without the textbook."
)

WIDTHS = flags.DEFINE_multi_integer(
  "widths", sorted(set(sd14.BLOCKS)), "Of the projections for the textbook."
)

LAMB = 0.5
CHUNK = 64
States = Iterator[np.ndarray]


def made_up(encoded: np.ndarray, count: int, seed: int) -> States:
  """`count` text states (77, 768) like those encoded, in chunks."""
  mean = encoded.mean(0)
  away = (encoded - mean).reshape(len(encoded), -1)
  for start in range(0, count, CHUNK):
    rng = np.random.default_rng([seed, start])
    size = min(CHUNK, count - start)
    mix = rng.standard_normal((size, len(away)), np.float32)
    mix /= np.sqrt(len(away))
    rows = mean + (mix @ away).reshape(size, *mean.shape)
    # Beyond what the encoded ones span: no two phrases are combinations.
    yield rows + 0.01 * rng.standard_normal(rows.shape, np.float32)


def rows_of(states: np.ndarray, first: int) -> np.ndarray:
  """Rows from `first` on, one below the other."""
  return states[:, first:].reshape(-1, states.shape[-1])


def ours(case: dict[str, Any], record: dict[str, list]) -> Any:
  """The context map, step by step; making states up is not timed."""
  parts: dict[str, list] = {}

  def add(sums, more):
    return sd14.timed(parts, "sums", lambda: sums + more())

  p = case["preserve_scale"]
  sums = p * closed_form.preserve_sums(case["empty"], 1)
  for states in case["erased"]():
    target = np.tile(case["anchor"][:-1], (len(states), 1))
    rows = rows_of(states, 1)
    sums = add(sums, lambda r=rows, t=target: closed_form.erase_sums(r, t, 1.0))
  for states in case["held"]():
    rows = rows_of(states, 0)
    sums = add(sums, lambda r=rows: closed_form.preserve_sums(r, p))
  record["sums"] = [tuple(map(sum, zip(*parts["sums"], strict=True)))]
  return sd14.timed(record, "solve", lambda: closed_form.solve(sums, LAMB))


def textbook(kernel: np.ndarray, case: dict[str, Any], dtype: Any):
  """One projection W (out, in): sums over phrases, explicit inverse."""
  w = np.asarray(kernel.T, dtype)
  left, right = LAMB * w, LAMB * np.eye(sd14.WIDTH, dtype=dtype)
  p = case["preserve_scale"]
  anchor = np.asarray(case["anchor"][:-1], dtype)
  for chunk in case["erased"]():
    for states in chunk:
      source = np.asarray(states[1:], dtype)
      left = left + (w @ anchor.T) @ source
      right = right + source.T @ source
  for chunk in (case["empty"][None], *case["held"]()):
    for states in chunk:
      held = np.asarray(states, dtype)
      left = left + p * (w @ held.T) @ held
      right = right + p * held.T @ held
  return left @ np.linalg.inv(right)


def beside_textbook(
  path: str,
  case: dict[str, Any],
  kernels: dict[str, Any],
  new: dict[str, Any],
) -> dict[str, float]:
  """Seconds of the textbook, and errors of the change against float64."""
  kernel, record = kernels[path], {}
  exact, single = (
    sd14.timed(record, name, lambda d=dtype: textbook(kernel, case, d))
    for name, dtype in (("float64", np.float64), ("float32", np.float32))
  )
  size = np.linalg.norm(exact - kernel.T)
  found = {"ours": np.float64(new[path]).T, "float32": np.float64(single)}
  return {
    **{f"cpu seconds, {name}": runs[0][1] for name, runs in record.items()},
    **{
      f"relative error of the change, {name}": float(
        np.linalg.norm(w - exact) / size
      )
      for name, w in found.items()
    },
  }


def measure(case: dict[str, Any], kernels: dict[str, Any]) -> dict[str, Any]:
  """Seconds of ours and of the textbook, and who is right."""
  record: dict[str, list] = {}
  context_map, diagnostics = ours(case, record)
  change = np.float32(context_map - np.eye(sd14.WIDTH)).T
  new = sd14.timed(record, "apply", lambda: edits.moved(change, kernels))
  result: dict[str, Any] = {"diagnostics": diagnostics}
  if case["concepts"] <= TEXTBOOK.value:
    result["textbook, a projection"] = {
      width: beside_textbook(
        next(k for k in kernels if kernels[k].shape[1] == width),
        case,
        kernels,
        new,
      )
      for width in WIDTHS.value
    }
  result["cpu_seconds"] = {k: v[0][1] for k, v in record.items()}
  return result


def main(_):
  """Measures and writes the record."""
  sd, params = sd14.model()
  kernels = cross_attention_kernels(params)
  artists = lists.load("artists_1734")
  phrases = [*artists[: ENCODED.value], "", "art"]
  list(uce.encode(sd, params, phrases))  # compiles
  timing: dict[str, list] = {}
  states = sd14.timed(
    timing, "encode", lambda: list(uce.encode(sd, params, phrases))
  )
  encoded = np.stack([s.rows for s in states[: ENCODED.value]])
  empty, art = (state.rows for state in states[ENCODED.value :])
  gram = sd14.timed(timing, "gram", lambda: projection_gram(kernels))

  def case(concepts: int, held: int, anchor: np.ndarray) -> dict[str, Any]:
    return {
      "concepts": concepts,
      "erased": lambda: made_up(encoded, concepts, 1),
      "held": lambda: made_up(encoded, held, 2),
      "anchor": anchor,
      "empty": empty,
      "preserve_scale": max(0.1, 1 / (1 + held)),
    }

  cases = {"1 artist, 1,733 held": case(1, len(artists) - 1, art)}
  for count in LIST_SIZES.value:
    cases[f"{count:,} concepts"] = case(count, 0, empty)
  result = {
    **sd14.circumstances(__doc__),
    "cpu seconds a phrase, encoding": timing["encode"][0][1] / len(phrases),
    "cpu seconds, Gram of the projections": timing["gram"][0][1],
    "trace of the Gram": float(np.trace(gram)),
    "cases": {name: measure(one, kernels) for name, one in cases.items()},
  }
  text = json.dumps(result, indent=2)
  print(text)
  if sd14.OUT.value:
    pathlib.Path(sd14.OUT.value).write_text(text + "\n")


if __name__ == "__main__":
  jax.config.update("jax_platforms", "cpu")
  app.run(main)
