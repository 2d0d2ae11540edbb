"""The numbers of a resurgence study: a curve for each condition.

A condition is method / concept / tuning set / algorithm / defense. It pools the
rows of all its seeds, and each seed has its own prompts and noise. Intervals
describe prompts, for the models that were made; the spread of the seeds' values
stands beside them. McNemar's p counts every image, so a prompt that is drawn
twice, as few are, counts twice.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from unlearning_jax import statistics
from unlearning_jax.metrics import resurgence
from unlearning_jax.metrics.harmonic import harmonic
from unlearning_jax.metrics.resurgence import ERASED

Row = Mapping[str, Any]
# Group -> whether each of its images was right.
Bits = Mapping[str, np.ndarray]
# Predictors that are known before a run is tuned; `EARLY` has later ones.
BEFORE = (
  "relative_change", "key_value_share", "prompt_change", "similarity",
  "overlap", "overlap_centered", "pull", "synonyms_left",
)  # fmt: skip
# Those that measure what the UNet's weights lost.
OF_UNET = ("relative_change", "key_value_share", "prompt_change")
# A rank correlation over fewer erased models says nothing, and its bootstrap
# interval does not show that.
MIN_ERASURES = 5
# R_norm divides by the share of images that lost the concept. Below this share
# it is noise.
MIN_TAKEN = 0.2
# The runs that a rank correlation is over. Over all runs, predictors mostly
# tell closed forms from trained erasures, so each kind also stands alone.
AMONG = ("all", "closed forms", "trained")
# Other words for what was erased, pooled as the group `words`.
WORDS = ("synonyms", "paraphrases")
EARLY = ("reversion", "moved", "reversion_prompt", "output_gap", "noise_gap")


class Condition(NamedTuple):
  """What the runs of all seeds share; `str` gives its name."""

  method: str
  concept: str
  tuning_set: str
  algorithm: str
  defense: str

  def __str__(self) -> str:
    return "/".join(self)

  @property
  def run(self) -> str:
    """Its name without the defense."""
    return "/".join(self[:-1])

  @property
  def undefended(self) -> "Condition":
    """The same condition without a defense."""
    return self._replace(defense="none")

  @classmethod
  def parse(cls, text: str) -> "Condition":
    """The condition with this name."""
    return cls(*text.split("/"))


def record(
  condition: Condition,
  seed: int,
  base: Row,
  erased: Row,
  points: Mapping[int, Row],
  prompts: Mapping[str, Sequence[str]],
  predictors: Mapping[str, float],
  kind: str = "",
) -> dict[str, Any]:
  """One cell's record for `summarize`, with a further group `words`.

  Args:
    condition: what the cell shares with other seeds.
    seed: the cell's seed.
    base: the base's images, group -> "0110..." with 1 for a right image.
    erased: the erased model's images, likewise.
    points: step -> a row with `right`, like `base`, and `drift`.
    prompts: group -> the prompt of each image.
    predictors: name -> value.
    kind: the kind of erasure, a name in `AMONG`; "" if unknown.
  """
  stages = {0: erased} | {s: row["right"] for s, row in points.items()}
  leak = _bits(erased["synonyms"])
  return {
    "condition": condition,
    "seed": seed,
    "kind": kind,
    "base": _groups(base),
    "stages": {step: _groups(right) for step, right in sorted(stages.items())},
    "drift": {step: row["drift"] for step, row in points.items()},
    # Seeds are pooled: a prompt that two seeds share is one cluster.
    "prompts": {
      **{group: list(texts) for group, texts in prompts.items()},
      "words": [text for group in WORDS for text in prompts[group]],
    },
    "predictors": {**predictors, "synonyms_left": float(leak.mean())},
  }


def _groups(right: Row) -> dict[str, np.ndarray]:
  found = {group: _bits(text) for group, text in right.items()}
  return found | {"words": np.concatenate([found[g] for g in WORDS])}


def _bits(text: str) -> np.ndarray:
  return np.array([mark == "1" for mark in text])


def summarize(
  records: Iterable[Mapping[str, Any]], threshold: float
) -> list[dict[str, Any]]:
  """A curve for each condition.

  Args:
    records: cells, from `record`.
    threshold: the R_norm from which a concept counts as revived.

  Returns:
    For each condition `condition`, `seeds`, `base` and `steps`, and for prompts
    that name the concept
      revival     the first step that reaches the threshold, or None
      area        see `resurgence.area`
      early       the last step but one, and `resurgence.early_share` by it
      defined     whether R_norm is defined at all steps
    Each step has
      groups      rates with Wilson intervals, and right images `by_seed`
      resurgence  R_norm of each erased group with its interval, or None
      median, deviation  of the seeds' own R_norm
      harmonic    of what is gone and what is kept
      drift       name -> each seed's value; after tuning
      change      each group, compared with the erased model; after tuning
      defended    each group, compared with the run without the defense
    A comparison has images `lost` and `gained`, McNemar's `p`, and `p_by_seed`.
  """
  together: dict[Condition, list[Mapping[str, Any]]] = {}
  for one in records:
    together.setdefault(one["condition"], []).append(one)
  found = []
  for name, cells in together.items():
    cells = sorted(cells, key=lambda cell: cell["seed"])
    plain = name.undefended
    plain = together.get(plain, []) if plain != name else []
    free = {cell["seed"]: cell["stages"] for cell in plain}
    found.append(_curve(name, cells, free, threshold))
  return found


def _curve(
  name: Condition,
  cells: Sequence[Mapping[str, Any]],
  free: Mapping[int, Mapping[int, Any]],
  threshold: float,
) -> dict[str, Any]:
  # Only steps that every seed has: the curve would jump where seeds end.
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
    stages = [cell["stages"][step] for cell in cells]
    point = {
      "step": step,
      "groups": _rates(stages),
      "resurgence": back,
      "median": median,
      "deviation": spread,
      "harmonic": harmonic(
        *(float(now[group].mean()) for group in ("explicit", "others"))
      ),
    }
    if step:
      drifts = [cell["drift"][step] for cell in cells]
      point["drift"] = {n: [one[n] for one in drifts] for n in drifts[0]}
      point["change"] = _changes([c["stages"][0] for c in cells], stages)
      others = [free.get(c["seed"], {}).get(step) for c in cells]
      if all(others):
        point["defended"] = _changes(others, stages)
    listed.append(point)
  found = {
    "condition": str(name),
    "seeds": sorted(cell["seed"] for cell in cells),
    "base": _rates([cell["base"] for cell in cells]),
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


def _pooled(parts: Sequence[Bits]) -> dict[str, np.ndarray]:
  return {
    group: np.concatenate([part[group] for part in parts]) for group in parts[0]
  }


def _rates(parts: Sequence[Bits]) -> dict[str, Any]:
  """Each group's rate over all seeds, with the right images of each seed."""
  return {
    group: _rate(bits) | {"by_seed": [int(part[group].sum()) for part in parts]}
    for group, bits in _pooled(parts).items()
  }


def _changes(
  before: Sequence[Bits],
  after: Sequence[Bits],
) -> dict[str, dict[str, Any]]:
  """Compares two models image by image, for each group."""
  found = {}
  for group in after[0]:
    pairs = [(a[group], b[group]) for a, b in zip(before, after, strict=True)]
    old, new = (np.concatenate(bits) for bits in zip(*pairs, strict=True))
    found[group] = {
      "lost": int((old & ~new).sum()),
      "gained": int((new & ~old).sum()),
      "p": statistics.mcnemar(old, new),
      "p_by_seed": [statistics.mcnemar(a, b) for a, b in pairs],
    }
  return found


def _rate(bits: np.ndarray) -> dict[str, float]:
  k, n = int(bits.sum()), len(bits)
  low, high = statistics.wilson(k, n)
  return {"value": k / n, "low": low, "high": high, "k": k, "n": n}


def _resurgence(
  base: Bits, erased: Bits, now: Bits, prompts: Row, group: str
) -> dict[str, float] | None:
  before, gone = base[group], erased[group]
  if before.mean() - gone.mean() < MIN_TAKEN:
    return None
  if now is erased:
    # R_norm of the erased model is 0 by definition.
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
  """Rank correlations of predictors with a run's last R_norm.

  The runs are those without a defense, with a learning rate above 0, and with
  data that do not show what was erased. They are taken all together and by kind
  of erasure, if there are at least `MIN_ERASURES` erasures. The bootstrap draws
  an erasure with all its seeds, because a closed form is the same for all.

  Returns:
    Rows with `among` (which runs), `name`, `when` ("before" tuning, or "early",
    at the first measured step), `value`, `low`, `high` and `n` runs; the
    strongest first, for each `among`.
  """
  runs = [
    (one, value)
    for one in records
    if one["condition"].tuning_set not in ("same", "control")
    and one["condition"].defense == "none"
    and len(one["stages"]) > 1
    and (value := _own(one, max(one["stages"]))) is not None
  ]
  found = []
  for among in AMONG:
    own = [run for run in runs if among in (AMONG[0], run[0]["kind"])]
    if len({_erasure(one) for one, _ in own}) >= MIN_ERASURES:
      found += [{"among": among, **row} for row in _correlations(own)]
  return found


def _correlations(
  runs: Sequence[tuple[Mapping[str, Any], float]],
) -> list[dict[str, Any]]:
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
    known = one["predictors"]
    # An edit of the text encoder alone is not the smallest one: of the UNet
    # there is nothing to measure.
    if name in OF_UNET and known.get("relative_change") == 0:
      return None
    return known.get(name)
  return one["drift"][min(one["drift"])][name]


def _erasure(one: Mapping[str, Any]) -> tuple[str, str]:
  return one["condition"][:2]
