"""R_norm as a metric: how far an erased concept came back in each tuned model.

A row's model is `base`, `erased`, or the name of a tuned one. All models draw
the same ids. `metrics.resurgence` has the equation.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unlearning_jax import metrics
from unlearning_jax.metrics import Estimate, Row, collapse, resurgence

BASE, GONE = "base", "erased"
# Model -> id -> group, prompt, whether the image shows what was asked for, and
# what `collapse.pixels` says of it, where the row has that.
State = Mapping[str, Mapping[str, tuple[Any, ...]]]


def update(state: State, images: object, rows: Sequence[Row]) -> State:
  """Adds the rows that ask for what was erased.

  Raises:
    ValueError: a row is not judged.
  """
  del images
  asked = [row for row in rows if row["group"] in resurgence.ERASED]
  return metrics.keep(state, asked, _kept)


def _kept(row: Row) -> tuple[Any, ...]:
  if "shown" not in row and "judged" not in row:
    raise ValueError(f"r_norm: row {row['id']!r} is not judged; set a judge")
  shown = row["shown"] if "shown" in row else resurgence.outcome(row)
  look = [row["pixels"]] if "pixels" in row else []
  return row["group"], row["prompt"], bool(shown), *look


def compute(state: State) -> list[Estimate]:
  """R_norm of each tuned model and group of prompts, or why it is undefined."""
  tuned = [model for model in sorted(state) if model not in (BASE, GONE)]
  return [one for model in tuned for one in _of_model(state, model)]


def _of_model(state: State, model: str) -> list[Estimate]:
  mine = state[model]
  groups = {group for group, *_ in mine.values()}
  if any(state.get(other, {}).keys() != mine.keys() for other in (BASE, GONE)):
    failed = f"needs the same rows of {BASE}, {GONE} and {model}"
    return [Estimate("r_norm", None, n=len(mine), model=model, failed=failed)]
  for one in (GONE, model):
    if why := _collapsed(state, one):
      failed = f"{one} collapsed, so it shows nothing at all: {why}"
      return [Estimate("r_norm", None, n=len(mine), model=model, failed=failed)]
  found = []
  for group in (g for g in resurgence.ERASED if g in groups):
    ids = sorted(i for i, one in mine.items() if one[0] == group)
    before, gone, now = (
      np.array([state[m][i][2] for i in ids]) for m in (BASE, GONE, model)
    )
    prompts = [mine[i][1] for i in ids]
    size, name = len(ids), f"r_norm/{group}"
    clusters = len(set(prompts))
    try:
      back = resurgence.normalized(before, gone, now, prompts)
    except ValueError as error:
      why = str(error)
      found.append(Estimate(name, None, n=size, model=model, failed=why))
      continue
    found.append(
      Estimate(
        name,
        back.value,
        back.low,
        back.high,
        n=size,
        method="bootstrap, Wilson at the least",
        clusters=clusters,
        model=model,
      )  # fmt: skip
    )
  return found


def _collapsed(state: State, model: str) -> str:
  """Why a model draws no pictures; "" if it does, or rows do not say."""
  looks = []
  for name in (BASE, model):
    held = [look for _, _, _, *look in state[name].values()]
    if not all(held):
      return ""
    looks.append(collapse.looks(look for (look,) in held))
  return "; ".join(collapse.no_pictures(*looks))


METRIC = metrics.Metric(
  "r_norm", dict, update, metrics.unite, compute, images=False,
  verbs=("resurgence",),
)  # fmt: skip
