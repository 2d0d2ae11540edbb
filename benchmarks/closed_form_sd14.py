"""Times RECE's nudity recipe (UCE, three epochs) at Stable Diffusion 1.4 size.

Random weights: the text encoder and the 32 key and value projections of the
UNet, nothing else of it is read. Beside it, the textbook: the same edit one
projection at a time in float32 with explicit inverses, text states given.

  python benchmarks/closed_form_sd14.py --out=benchmarks/results/x.json

The released functions (`edit_model`, `close_form_emb_regzero`,
`edit_model_adversarial` of CharlesGong12/RECE @ 403a67f), run beside it once on
stand-ins of the same shapes, all 32 projections (torch 2.13, one thread of the
same busy Intel Xeon, random weights, 2026-11-26): 32.2 CPU seconds for UCE, 0.9
for a derivation, 25.9 for an epoch's edit, 112.8 for the recipe, where ours
took 1.78, and 0.95 for every further edit of the same model.

2 CPU cores: a minute, mostly the textbook. On a busy machine compare the CPU
seconds, with one thread (OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
XLA_FLAGS=--xla_cpu_multi_thread_eigen=false): several threads that wait for a
core spin, and that counts as CPU time too.
"""

import datetime
import json
import os
import pathlib
import time
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from unlearning_jax import models
from unlearning_jax.concepts import make_concepts
from unlearning_jax.edits import apply_to_params, make_edit
from unlearning_jax.erasures import rece, uce
from unlearning_jax.projections import cross_attention_kernels, projection_gram
from unlearning_jax.stable_diffusion import StableDiffusion

OUT = flags.DEFINE_string("out", None, "Where the JSON record goes.")
REPEATS = flags.DEFINE_integer("repeats", 5, "Warm runs; the median is told.")

WIDTH = 768
BLOCKS = (320,) * 5 + (640,) * 5 + (1280,) * 6
START, END = 49406, 49407
RECIPE = rece.Epochs(epochs=3, lam_r=0.1)


def tokenizer() -> Any:
  """CLIP's numbers for words that are one token each; any will do here."""

  def call(texts, **_):
    words = ([zlib.crc32(w.encode()) % START for w in t.split()] for t in texts)
    return {"input_ids": [[START, *row, END] for row in words]}

  class Tokenizer:
    __call__ = staticmethod(call)
    eos_token_id = pad_token_id = END

  return Tokenizer()


def model(seed: int = 0) -> tuple[StableDiffusion, dict[str, Any]]:
  """Text encoder and projections of SD 1.4's shapes, random weights."""
  text_encoder = models.ClipTextModel.from_config(
    {
      "hidden_size": WIDTH,
      "intermediate_size": 3072,
      "num_hidden_layers": 12,
      "num_attention_heads": 12,
      "eos_token_id": END,
    }
  )
  ids = jnp.zeros((1, 77), jnp.int32)
  shapes = jax.eval_shape(text_encoder.init, jax.random.key(0), ids)["params"]
  rng = np.random.default_rng(seed)

  def fill(leaf):
    if leaf.ndim == 1:
      return np.float32(0.05 * rng.standard_normal(leaf.shape) + 0.5)
    return rng.standard_normal(leaf.shape, np.float32) / leaf.shape[0] ** 0.5

  unet = {
    f"down_blocks_{i}": {
      "attn2": {
        name: {"kernel": rng.standard_normal((WIDTH, out), np.float32) / 36}
        for name in ("to_k", "to_v")
      }
    }
    for i, out in enumerate(BLOCKS)
  }
  # Only the text encoder and the tokenizer of the bundle are used.
  parts = dict.fromkeys(("unet", "vae", "schedule", "files"))
  sd = StableDiffusion(
    text_encoder=text_encoder,
    latent_size=(64, 64),
    tokenizer=tokenizer(),
    **parts,  # type: ignore
  )
  encoder = jax.tree.map(fill, shapes)
  return sd, fresh({"text_encoder": encoder, "unet": unet, "vae": {}})


def fresh(params: dict[str, Any]) -> dict[str, Any]:
  """The same weights as another model's: nothing is known of it yet."""
  return jax.block_until_ready(
    jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params)
  )


def textbook(
  kernels: dict[str, np.ndarray],
  source: np.ndarray,
  target: np.ndarray,
  *,
  dtype: Any = np.float32,
) -> list[np.ndarray]:
  """The recipe on explicit weights W (out, in), a projection at a time."""
  base = [np.asarray(k.T, dtype) for k in kernels.values()]
  source, target = np.asarray(source, dtype), np.asarray(target, dtype)
  eye = np.eye(WIDTH, dtype=dtype)

  def edit(weights, c, a, held, p, lamb):
    new = []
    for w in weights:
      left = lamb * w + (w @ a.T) @ c + p * (w @ held.T) @ held
      right = lamb * eye + c.T @ c + p * held.T @ held
      new.append(left @ np.linalg.inv(right))
    return new

  # One subject token, an empty anchor: rows 1.. are sent to rows 0.. .
  now = edit(base, source[1:], target[:-1], target, 1.0, 0.5)
  for _ in range(RECIPE.epochs):
    m = RECIPE.lam_r * eye + sum(w.T @ w for w in now)
    n = sum(w.T @ w0 for w, w0 in zip(now, base, strict=True))
    derived = source @ (np.linalg.inv(m) @ n).T
    now = edit(now, derived, target, target, 0.1, RECIPE.lamb)
  return now


def timed(record: dict[str, list], name: str, call: Callable[[], Any]) -> Any:
  """Runs `call`, adds its wall and CPU seconds to `record[name]`."""
  wall, cpu = time.perf_counter(), time.process_time()
  out = jax.block_until_ready(call())
  record.setdefault(name, []).append(
    (time.perf_counter() - wall, time.process_time() - cpu)
  )
  return out


def stages(sd, params, concepts, record) -> tuple[Any, dict[str, Any]]:
  """The recipe in the steps that `rece.erase` takes."""
  kernels = cross_attention_kernels(params)
  task = timed(record, "encode", lambda: uce.encode_task(sd, params, concepts))
  gram = timed(record, "gram", lambda: projection_gram(kernels))
  context_map, found = timed(
    record,
    "solve",
    lambda: rece.solve(task, gram, 0.1 * task.held, RECIPE, {}),
  )
  edit = timed(
    record,
    "sign",
    lambda: make_edit(
      context_map,
      params,
      gram,
      method="rece",
      concepts=concepts,
      diagnostics=found,
    ),
  )
  new = timed(record, "apply", lambda: apply_to_params(edit, params))
  return edit, new


def relative_error(
  kernels: dict[str, np.ndarray], new: list, exact: list
) -> float:
  """|dW - dW_exact| / |dW_exact| over all projections."""
  off = sum(np.sum((n - e) ** 2) for n, e in zip(new, exact, strict=True))
  base = [np.float64(k.T) for k in kernels.values()]
  size = sum(np.sum((e - w) ** 2) for e, w in zip(exact, base, strict=True))
  return float(np.sqrt(off / size))


def circumstances(doc: str | None) -> dict[str, Any]:
  """What a record of seconds must say besides."""
  return {
    "what": (doc or "").splitlines()[0],
    "date": datetime.date.today().isoformat(),
    "cpus": os.cpu_count(),
    "load_average": os.getloadavg(),
    "environment": {
      name: os.environ.get(name)
      for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "XLA_FLAGS")
    },
    "versions": {"jax": jax.__version__, "numpy": np.__version__},
  }


def main(_):
  """Measures and writes the record."""
  sd, params = model()
  concepts = make_concepts("nudity", task="unsafe")
  record: dict[str, list] = {}

  def whole(params):
    edit = rece.erase(sd, params, concepts, None, rece.Hparams(recipe="nudity"))
    return apply_to_params(edit, params)

  timed(record, "first call, compilation included", lambda: whole(params))
  for _ in range(REPEATS.value):
    other = fresh(params)
    timed(record, "whole, a model's first edit", lambda m=other: whole(m))
    timed(record, "whole, a further edit of it", lambda m=other: whole(m))
    edit, new = stages(sd, fresh(params), concepts, record)

  kernels = cross_attention_kernels(params)
  rows = [state.rows for state in uce.encode(sd, params, ["nudity", ""])]
  plain = timed(record, "textbook", lambda: textbook(kernels, *rows))
  exact = textbook(kernels, *rows, dtype=np.float64)
  ours = cross_attention_kernels(new).values()
  result = {
    **circumstances(__doc__),
    "repeats": REPEATS.value,
    "median_seconds": {
      name: {
        "wall": round(float(np.median([w for w, _ in runs])), 4),
        "cpu": round(float(np.median([c for _, c in runs])), 4),
        "fastest_wall": round(min(w for w, _ in runs), 4),
      }
      for name, runs in record.items()
    },
    "relative_error_of_the_change_against_float64_textbook": {
      "ours": relative_error(kernels, [np.float64(k).T for k in ours], exact),
      "float32 textbook": relative_error(kernels, plain, exact),
    },
    "diagnostics": edit.diagnostics,
  }
  text = json.dumps(result, indent=2)
  print(text)
  if OUT.value:
    path = pathlib.Path(OUT.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


if __name__ == "__main__":
  app.run(main)
