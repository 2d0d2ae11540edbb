"""A resurgence study in numbers: one curve a condition, seeds pooled.

A condition is method / concept / tuning set / algorithm / defence. Its rows
are those of all its seeds; each seed has prompts and noise of its own.
Intervals are of prompts, given the models that were made; how far the seeds'
own values lie apart is told beside them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from unlearning_jax.evaluators import resurgence, statistics
from unlearning_jax.evaluators.resurgence import ERASED

Row = Mapping[str, Any]
# What is known of a run before it is tuned, and early on.
BEFORE = (
  "relative_change", "key_value_share", "prompt_change", "similarity",
  "overlap", "overlap_centred", "pull", "synonyms_left",
)  # fmt: skip
# Of fewer erased models than this a rank correlation says nothing, and the
# bootstrap does not know it.
MIN_ERASURES = 5
# The share of images that an erasure must have taken the concept from: what is
# divided by less is noise.
MIN_TAKEN = 0.2
EARLY = ("reversion", "moved", "reversion_prompt", "output_gap", "noise_gap")


def record(
  condition: str,
  seed: int,
  base: Row,
  erased: Row,
  points: Mapping[int, Row],
  prompts: Mapping[str, Sequence[str]],
  predictors: Mapping[str, float],
) -> dict[str, Any]:
  """One cell, as `summarize` reads it.

  Args:
    condition: the cell's, without its seed.
    seed: its seed.
    base: group -> "0110...", one character an image.
    erased: likewise.
    points: step -> a row with `right`, like `base`, and `drift`.
    prompts: group -> prompts, one an image.
    predictors: by name.
  """
  stages = {0: erased} | {s: row["right"] for s, row in points.items()}
  leak = _bits(erased["synonyms"])
  return {
    "condition": condition,
    "seed": seed,
    "base": {group: _bits(text) for group, text in base.items()},
    "stages": {
      step: {group: _bits(text) for group, text in right.items()}
      for step, right in sorted(stages.items())
    },
    "drift": {step: row["drift"] for step, row in points.items()},
    # Without the seed: a prompt that two seeds have is drawn with both.
    "prompts": {group: list(texts) for group, texts in prompts.items()},
    "predictors": {**predictors, "synonyms_left": float(leak.mean())},
  }


def _bits(text: str) -> np.ndarray:
  return np.array([mark == "1" for mark in text])


def summarize(
  records: Iterable[Mapping[str, Any]], threshold: float
) -> list[dict[str, Any]]:
  """A curve for each condition.

  Args:
    records: of `record`.
    threshold: R_norm from which a concept counts as revived.

  Returns:
    For each condition: `condition`, `seeds`, `base` and `steps`; each step has
    `groups` (rates with Wilson intervals), `resurgence` by erased group (with
    its bootstrap interval, None where it is undefined), `median` and
    `deviation` over seeds. And of prompts by name: `revival` (step or None),
    `area`, `early` (the last step but one, and the share of the last value that
    was there by then, None of nothing).
  """
  together: dict[str, list[Mapping[str, Any]]] = {}
  for one in records:
    together.setdefault(one["condition"], []).append(one)
  return [_curve(name, cells, threshold) for name, cells in together.items()]


def _curve(
  name: str, cells: Sequence[Mapping[str, Any]], threshold: float
) -> dict[str, Any]:
  # Only where every seed has been, or the curve would jump with the seeds.
  steps = sorted(set.intersection(*(set(cell["stages"]) for cell in cells)))
  base, prompts = _pooled([c["base"] for c in cells]), {}
  for group in base:
    prompts[group] = [p for c in cells for p in c["prompts"][group]]
  erased = _pooled([c["stages"][0] for c in cells])
  listed = []
  for step in steps:
    now = _pooled([c["stages"][step] for c in cells]) if step else erased
    back = {
      group: _resurgence(base, erased, now, prompts, group)
      for group in ERASED
      if group in now
    }
    own = [_own(cell, step) for cell in cells]
    known = [value for value in own if value is not None]
    median, spread = resurgence.deviation(known) if known else (None, None)
    listed.append({
      "step": step,
      "groups": {group: _rate(bits) for group, bits in now.items()},
      "resurgence": back,
      "median": median,
      "deviation": spread,
    })  # fmt: skip
  found = {
    "condition": name,
    "seeds": sorted(cell["seed"] for cell in cells),
    "base": {group: _rate(bits) for group, bits in base.items()},
    "steps": listed,
    "revival": None, "area": None, "early": None, "defined": True,
  }  # fmt: skip
  values = [v for p in listed if (v := _value(p)) is not None]
  if len(values) < len(listed):
    return found | {"defined": False}
  found["revival"] = resurgence.revival_step(steps, values, threshold)
  if len(steps) > 1:
    found["area"] = resurgence.area(steps, values)
    by = steps[-2]
    share = resurgence.early_share(steps, values, by)
    found["early"] = {"step": by, "share": share}
  return found


def _value(point: Mapping[str, Any]) -> float | None:
  back = point["resurgence"]["explicit"]
  return back and back["value"]


def _pooled(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
  return {
    group: np.concatenate([part[group] for part in parts]) for group in parts[0]
  }


def _rate(bits: np.ndarray) -> dict[str, float]:
  k, n = int(bits.sum()), len(bits)
  low, high = statistics.wilson(k, n)
  return {"value": k / n, "low": low, "high": high, "k": k, "n": n}


def _resurgence(
  base: Any, erased: Any, now: Any, prompts: Any, group: str
) -> dict[str, float] | None:
  before, gone = base[group], erased[group]
  if before.mean() - gone.mean() < MIN_TAKEN:
    return None
  if now is erased:
    # The model that all is counted from: there is nothing to estimate.
    return resurgence.Estimate(0.0, 0.0, 0.0)._asdict()
  found = resurgence.normalized(before, gone, now[group], prompts[group])
  return found._asdict()


def _own(cell: Mapping[str, Any], step: int) -> float | None:
  base, gone = (s["explicit"].mean() for s in (cell["base"], cell["stages"][0]))
  if base - gone < MIN_TAKEN:
    return None
  now = cell["stages"][step]["explicit"].mean()
  return float((now - gone) / (base - gone))


def predictors(
  records: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
  """What foretells resurgence: rank correlations with the last R_norm.

  Over all runs whose data say nothing of what was erased, whose learning rate
  is not 0 and which nothing defends, if they start from enough erasures. Seeds
  of one erasure are one: a closed form is the same in all of them. Diagnostics
  of the first measured step are named `early`.

  Returns:
    `name`, `when`, `value`, `low`, `high` and `n` runs; the strongest first.
  """
  runs = [
    (one, value)
    for one in records
    if one["condition"].split("/")[2] not in ("same", "control")
    and one["condition"].split("/")[4] == "none"
    and len(one["stages"]) > 1
    and (value := _own(one, max(one["stages"]))) is not None
  ]
  if len({_erasure(one) for one, _ in runs}) < MIN_ERASURES:
    return []
  found = []
  for when, names in (("before", BEFORE), ("early", EARLY)):
    for name in names:
      pairs = [
        (x, value, _erasure(one))
        for one, value in runs
        if (x := _predictor(one, name, when)) is not None
      ]
      if not pairs:
        continue
      estimate = resurgence.rank_correlation(*zip(*pairs, strict=True))
      if estimate is not None:
        found.append(
          {"name": name, "when": when, **estimate._asdict(), "n": len(pairs)}
        )
  return sorted(found, key=lambda row: -abs(row["value"]))


def _predictor(one: Mapping[str, Any], name: str, when: str) -> float | None:
  if when == "before":
    return one["predictors"].get(name)
  return one["drift"][min(one["drift"])][name]


def _erasure(one: Mapping[str, Any]) -> str:
  return "/".join(one["condition"].split("/")[:2])
