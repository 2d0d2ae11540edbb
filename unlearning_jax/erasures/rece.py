"""RECE: Reliable and Efficient Concept Erasure (Gong et al., 2024).

UCE first. Then, a few times: derive the text states that still bring the
concept back through the edited projections, and erase those.

Every projection stays W T (see `closed_form`), so an epoch needs only
S = sum of W^T W over the base projections, and the map P that was reached:

  derive  min_C'  sum |W P C'^T - W C^T|^2 + lam_r |C'|^2
          C'^T = M^-1 P^T S C^T,   M = P^T S P + lam_r I
  erase   P <- P (I + D A^-1), with C' sent to the anchor's states, row by row.

The anchor's values, the preserved ones and the ridge are those of the edited
projections, as in the release. All rows of a phrase take part, start included.

So an epoch holds nothing that was erased before it. Where the derived states
differ little from the concept's own, by just what UCE had learnt to detect, it
undoes UCE: on the Shapes model the concept is drawn again. The extension
`joint` keeps every row: P is solved anew, from the base, for UCE's rows and all
that were derived so far.

Reference: https://arxiv.org/abs/2407.12383
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Float64

from unlearning_jax import closed_form
from unlearning_jax.closed_form import Edit
from unlearning_jax.concepts import Concept, check_choice, check_concepts
from unlearning_jax.erasures import uce

# Published per kind of concept. "hard" objects are those that UCE leaves
# recognisable (church, garbage truck), "easy" the others (English springer,
# golf ball, parachute).
RECIPES = {
  "nudity": {"lam_r": 1e-1, "epochs": 3},
  "unsafe": {"lam_r": 1e-1, "epochs": 2},
  "artists": {"lam_r": 1e-3, "epochs": 1},
  "objects_hard": {"lam_r": 1e-3, "epochs": 1},
  "objects_easy": {"lam_r": 1e-1, "epochs": 1},
}
_RECIPE_OF_TASK = {
  "unsafe": "unsafe",
  "art": "artists",
  "object": "objects_easy",
}
# The release starts from a UCE model made with UCE's own coefficients; the
# paper's text gives 0.1 and 0.1 for everything.
PRESETS = {
  "reference": {"lamb": 0.5, "preserve_scale": None},
  "paper": {"lamb": 0.1, "preserve_scale": 0.1},
}
# A derived state this many times longer than the concept's own is no longer a
# text state: lam_r is too small.
_LONG = 10


def derive(
  gram: Float64[np.ndarray, "d d"],
  reached: Float64[np.ndarray, "d d"],
  states: Float[np.ndarray, "n d"],
  lam_r: float,
) -> Float64[np.ndarray, "n d"]:
  """The states C' that the edited projections map to where C was.

  Args:
    gram: S of the base projections.
    reached: P of the edited ones, W P.
    states: C, the concept's rows.
    lam_r: weight of |C'|^2, in units of S.

  Raises:
    ValueError: lam_r is not positive.
  """
  if not (np.isfinite(lam_r) and lam_r > 0):
    raise ValueError(f"lam_r={lam_r}; allowed: finite numbers above 0")
  cross = reached.T @ gram
  system = cross @ reached
  # Symmetric by construction, but for rounding.
  system = (system + system.T) / 2 + lam_r * np.eye(len(gram))
  right = cross @ np.asarray(states, np.float64).T
  return closed_form.solve_spd(system, right, f"lam_r={lam_r}")[0].T


def refine(
  gram: Float64[np.ndarray, "d d"],
  start: Float64[np.ndarray, "d d"],
  pairs: Sequence[tuple[Float[np.ndarray, "l d"], Float[np.ndarray, "l d"]]],
  held: closed_form.Sums,
  *,
  epochs: int,
  lam_r: float,
  erase_scale: float = 1.0,
  lamb: float = 0.1,
  joint: bool = False,
) -> tuple[Float64[np.ndarray, "d d"], list[dict[str, float]]]:
  """RECE's epochs, from a context map to a context map.

  Args:
    gram: S of the base projections.
    start: P to begin with, UCE's.
    pairs: (states, anchor's states) of every concept, all rows.
    held: sums of the preserved rows; if `joint`, of all rows of `start`.
    epochs: how often to derive and erase.
    lam_r: of the derivation.
    erase_scale: e of the erasing step.
    lamb: ridge of the erasing step.
    joint: keep every derived row, and solve from the base.

  Returns:
    P, and per epoch `derived_norm` |C'| / |C|; how far the derived states are
    from the concept through the projections, relative, before the epoch's edit
    (`derive_residual`) and, after it, from the anchor (`erase_residual`; 1 is
    where the edit found them); `condition_number` and `solve_error`.

  Raises:
    ValueError: a solve failed, or a state is not finite.
  """
  states = np.concatenate([np.asarray(s, np.float64) for s, _ in pairs])
  anchors = np.concatenate([np.asarray(a, np.float64) for _, a in pairs])
  reached, report = start, []
  for epoch in range(epochs):
    derived = derive(gram, reached, states, lam_r)
    length = float(np.linalg.norm(derived) / np.linalg.norm(states))
    if length > _LONG:
      warnings.warn(
        f"epoch {epoch}: the derived states are {length:.0f} times as long as "
        f"the concept's; lam_r={lam_r} is small for these weights",
        stacklevel=2,
      )
    sums = closed_form.erase_sums(derived, anchors, erase_scale) + held
    step, diagnostics = closed_form.solve(sums, lamb)
    # Through the projections: what the UNet sees of a row x is W x.
    target = anchors if joint else anchors @ reached.T
    before = _seen(gram, derived @ reached.T - target)
    missed = _seen(gram, derived @ reached.T - states)
    if joint:
      held, reached = sums, step
    else:
      reached = reached @ step
    after = _seen(gram, derived @ reached.T - target)
    report.append(
      {
        "derived_norm": length,
        "derive_residual": missed / _seen(gram, states),
        "erase_residual": after / before if before else 0.0,
        **diagnostics,
      }
    )
  return reached, report


def _seen(
  gram: Float64[np.ndarray, "d d"], rows: Float64[np.ndarray, "n d"]
) -> float:
  """|W x| over all projections and rows x."""
  return float(np.sqrt(np.sum((rows @ gram) * rows)))


def solve(
  task: uce.Task,
  gram: Float64[np.ndarray, "d d"],
  held: closed_form.Sums,
  *,
  epochs: int,
  lam_r: float,
  erase_scale: float = 1.0,
  lamb: float = 0.1,
  joint: bool = False,
  uce_scales: Mapping[str, Any],
) -> tuple[Float64[np.ndarray, "d d"], dict[str, Any]]:
  """UCE, then RECE's epochs, on encoded phrases; arguments as `refine`.

  `uce_scales` are those of `uce.solve`; `joint` epochs use them too, instead of
  `held` and `lamb`. The diagnostics are UCE's and, under "epochs", one record
  an epoch.
  """
  start, diagnostics = uce.solve(task, **uce_scales)
  pairs = [(source.rows, target.rows) for source, target in task.pairs]
  if joint:
    scales = dict(uce_scales)
    lamb = scales.pop("lamb")
    held, _ = uce.gather(task, **scales)
  context_map, report = refine(
    gram,
    start,
    pairs,
    held,
    epochs=epochs,
    lam_r=lam_r,
    erase_scale=erase_scale,
    lamb=lamb,
    joint=joint,
  )
  return context_map, {**diagnostics, "lam_r": lam_r, "epochs": report}


def erase(
  sd: Any,
  params: Any,
  concepts: Sequence[Concept],
  key: Array | None = None,
  *,
  preset: str = "reference",
  recipe: str | None = None,
  epochs: int | None = None,
  lam_r: float | None = None,
  rho: float | None = None,
  erase_scale: float = 1.0,
  preserve_scale: float = 0.1,
  lamb: float = 0.1,
  joint: bool = False,
  uce_preserve_scale: float | None = None,
  uce_lamb: float | None = None,
) -> Edit:
  """Erases `concepts` by UCE and RECE's epochs.

  Args:
    sd: the model.
    params: its parameters.
    concepts: what to erase; all of one task.
    key: unused, RECE draws nothing.
    preset: coefficients of the UCE start, "reference" (the release) or "paper".
    recipe: published `epochs` and `lam_r`, one of `RECIPES`; None for that of
      the concepts' task.
    epochs: instead of the recipe's; 0 is UCE alone.
    lam_r: weight of the derived states' norm, in units of S, instead of the
      recipe's.
    rho: lam_r free of units, lam_r = rho trace(S) / d; an extension.
    erase_scale: e of an epoch.
    preserve_scale: p of an epoch; unused if `joint`.
    lamb: ridge of an epoch; unused if `joint`.
    joint: every epoch keeps all rows so far, UCE's included; an extension.
    uce_preserve_scale: p of the start; None for the preset's.
    uce_lamb: ridge of the start; None for the preset's.

  Raises:
    ValueError: as `uce.erase`; the concepts are of several tasks; lam_r and rho
      are both given; epochs, lam_r or rho is out of range.
  """
  del key
  check_choice("preset", preset, PRESETS)
  check_concepts(concepts)
  kind = _one_task(concepts)
  recipe = recipe or _RECIPE_OF_TASK[kind]
  check_choice("recipe", recipe, RECIPES)
  start = _start(PRESETS[preset], uce_preserve_scale, uce_lamb)
  epochs, lam_r = _schedule(RECIPES[recipe], epochs, lam_r, rho)
  closed_form.check_scales(
    erase_scale=erase_scale, preserve_scale=preserve_scale, lamb=lamb
  )

  kernels = closed_form.cross_attention_kernels(params)
  task = uce.encode_task(sd, params, concepts)
  gram = closed_form.projection_gram(kernels)
  if rho is not None:
    lam_r = rho * float(np.trace(gram)) / len(gram)
  context_map, diagnostics = solve(
    task,
    gram,
    preserve_scale * _held(sd, params, task, kind),
    epochs=epochs,
    lam_r=lam_r,
    erase_scale=erase_scale,
    lamb=lamb,
    joint=joint,
    uce_scales=start,
  )
  return closed_form.make_edit(
    context_map,
    params,
    gram,
    method=f"rece {preset} {recipe}" + " joint" * joint,
    concepts=concepts,
    diagnostics=diagnostics,
  )


def _held(sd: Any, params: Any, task: uce.Task, kind: str) -> closed_form.Sums:
  """The preserved rows of an epoch, each with weight 1."""
  repeats = len(task.pairs) - 1
  if kind != "unsafe" or not repeats:
    return task.held
  # The release preserves " " once per concept here, and once elsewhere.
  (empty,) = uce.encode(sd, params, [" "])
  return task.held + float(repeats) * closed_form.preserve_sums(empty.rows, 1.0)


def _start(
  preset: Mapping[str, Any], preserve_scale: float | None, lamb: float | None
) -> dict[str, Any]:
  """The arguments of `uce.solve`."""
  preserve_scale = _given(preserve_scale, preset["preserve_scale"])
  lamb = float(_given(lamb, preset["lamb"]))
  closed_form.check_scales(
    uce_lamb=lamb, uce_preserve_scale=_given(preserve_scale, 0.0)
  )
  return {"preserve_scale": preserve_scale, "lamb": lamb}


def _schedule(
  recipe: Mapping[str, Any],
  epochs: int | None,
  lam_r: float | None,
  rho: float | None,
) -> tuple[int, float]:
  epochs = _given(epochs, recipe["epochs"])
  if not isinstance(epochs, int) or epochs < 0:
    raise ValueError(f"epochs={epochs!r}; allowed: whole numbers from 0")
  if lam_r is not None and rho is not None:
    raise ValueError(f"lam_r={lam_r} and rho={rho}: give one of them")
  lam_r = float(_given(lam_r, recipe["lam_r"]))
  for name, value in {"lam_r": lam_r, "rho": _given(rho, 1.0)}.items():
    if not (np.isfinite(value) and value > 0):
      raise ValueError(f"{name}={value}; allowed: finite numbers above 0")
  return epochs, lam_r


def _given(value: Any, default: Any) -> Any:
  return default if value is None else value


def _one_task(concepts: Sequence[Concept]) -> str:
  tasks = sorted({concept.task for concept in concepts})
  if len(tasks) > 1:
    raise ValueError(f"RECE erases one task at a time, got {', '.join(tasks)}")
  return tasks[0]
