"""What a reader must know before believing rates, and edits of no model."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unlearning_jax.edits import Edit
from unlearning_jax.judges import Judge, Target
from unlearning_jax.metrics import Estimate, collapse, judge_errors
from unlearning_jax.model import Model
from unlearning_jax.projections import Params, leaves_of

BASE = "base"
# The largest size of an edit in this package's own records is 0.66.
FAR = 10.0


def elsewhere(
  models: Mapping[str, Model], targets: Sequence[Mapping[str, str]], world: Any
) -> list[str]:
  """A sentence for each model that erases nothing of what the prompts ask for.

  Args:
    models: name -> model.
    targets: what the prompts ask for, each with `task` and `name`.
    world: the embedded world of the models; None knows no class.
  """
  asked = {one.get("name", "") for one in targets}
  found = []
  for name, model in models.items() if world and asked else ():
    gone = {
      one["name"] for one in world.erased_by(model.edit or model.guidance)
    }
    if gone and not gone & asked:
      found.append(
        f"{name} erases {', '.join(sorted(gone))}; the prompts ask for "
        f"{', '.join(sorted(asked))}, which it should still draw"
      )
  return found


def facts(
  rows: Sequence[Mapping[str, Any]],
  judge: Judge | None,
  targets: Sequence[Target],
  estimates: Mapping[str, Sequence[Estimate]],
) -> dict[str, Any]:
  """The judge's own errors, and which models collapsed.

  Args:
    rows: of every model; the base's `model` is `base`.
    judge: who judged them; None for nobody.
    targets: what was erased.
    estimates: metric -> its numbers.

  Returns:
    `collapse`, see `collapse.reasons`, for each model but the base, and
    `judge_errors`, see `judge_errors.errors`: parts of the page's document.
  """
  by_model: dict[str, dict[str, Mapping[str, Any]]] = {}
  for row in rows:
    by_model.setdefault(row["model"], {})[row["id"]] = row
  base = by_model[BASE]
  numbers = [one for listed in estimates.values() for one in listed]
  found: dict[str, Any] = {
    "collapse": {
      model: collapse.reasons(
        [*base.values()], [own[i] for i in base], judge, numbers, targets
      )
      for model, own in by_model.items()
      if model != BASE
    }
  }
  if judge is not None and targets:
    found["judge_errors"] = judge_errors.errors([*base.values()], targets)
  return found


def size(edit: Edit, params: Params) -> float:
  """How far an edit moves what it changes: |new - old| / |old|.

  Of a context map, it is that of text states whose directions are all alike.
  """
  if edit.context_map is not None:
    width = len(edit.context_map)
    # The largest first: its square may be beyond float64.
    change = edit.context_map - np.eye(width)
    most = max(np.abs(change).max(), np.finfo(np.float64).tiny)
    return float(most * np.linalg.norm(change / most) / np.sqrt(width))
  old = leaves_of(params)
  moved = whole = 0.0
  for path, leaf in edit.leaves.items():
    before = np.asarray(old[path], np.float64)
    moved += float(np.sum((leaf - before) ** 2))
    whole += float(np.sum(before**2))
  return float(np.sqrt(moved / whole)) if whole else 0.0


def check_near(what: str, far: float):
  """Refuses a model so far from the base that it has collapsed.

  Its pictures may have many colors and be no noise, and still show nothing.

  Args:
    what: what was moved, for the message.
    far: by how many times its size.

  Raises:
    FloatingPointError: it is farther than `FAR`, or not a number.
  """
  if not far <= FAR:
    raise FloatingPointError(
      f"{what} by {far:.1e} times its size, so the model collapsed: what it "
      "does not show, nobody erased"
    )
