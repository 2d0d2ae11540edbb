"""RECE: Reliable and Efficient Concept Erasure (Gong et al., 2024).

UCE first. Then, a few times: derive the text states that still bring the
concept back through the edited projections, and erase those.

Every projection stays W T (see `closed_form`), so an epoch needs only
S = sum of W^T W over the base projections, and the map P that was reached:

  derive  min_C'  sum |W P C'^T - W C^T|^2 + lam_r |C'|^2
          C'^T = M^-1 P^T S C^T,   M = P^T S P + lam_r I   (`derivation`)
  erase   P <- P (I + D A^-1), with C' sent to the anchor's states, row by row.

The anchor's values, the preserved ones and the ridge are those of the edited
projections, as in the release. All rows of a phrase take part, start included.

So an epoch holds nothing that was erased before it. Where the derived states
differ from the concept's own by little but what UCE had learnt to detect, it
undoes UCE: on the Shapes model the concept is drawn again. `rows="joint"`, an
extension, keeps every row: P is solved anew, from the base, for UCE's rows and
all that were derived so far. Further extensions, off by default: the release's
other regularizers of the derivation, and a stop where derived states bring no
more than a given share of the concept back.

Reference: https://arxiv.org/abs/2407.12383
"""

import dataclasses
import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, PRNGKeyArray

from unlearning_jax import closed_form
from unlearning_jax.closed_form.derivation import (
  REGULARIZERS,
  Products,
  derive_from,
)
from unlearning_jax.concepts import Concept, check_choice, check_concepts
from unlearning_jax.edits import Edit, make_edit
from unlearning_jax.erasures import NO_HOOKS, Hooks, uce
from unlearning_jax.projections import cross_attention_kernels, projection_gram
from unlearning_jax.stable_diffusion import Params, StableDiffusion

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
ROWS = ("sequential", "joint")
CHANGES = ("unet/*/attn2/to_[kv]/kernel",)
NEEDS = "nothing"
# A derived state this many times longer than the concept's own is no longer a
# text state: lam_r is too small.
_LONG = 10


@dataclasses.dataclass(frozen=True)
class Hparams:
  """RECE's hyperparameters.

  Attributes:
    preset: coefficients of the UCE start, "reference" (the release) or "paper".
    recipe: one of `RECIPES`; None for that of the concepts' task.
    epochs: instead of the recipe's; 0 is UCE alone.
    lam_r: of the derivation, in units of S, instead of the recipe's.
    rho: lam_r free of units, lam_r = rho trace(S) / d; an extension.
    erase_scale: e of an epoch.
    preserve_scale: p of an epoch.
    lamb: ridge of an epoch.
    regularizer: of the derivation; another than "zero" is not the published.
    rows: "sequential", or "joint", which solves for all rows from the base.
    tolerance: stop where derived states bring back no more than this share.
    uce_preserve_scale: p of the start; None for the preset's.
    uce_lamb: ridge of the start; None for the preset's.
    truncate: as `uce.Hparams`.
  """

  preset: str = "reference"
  recipe: str | None = None
  epochs: int | None = None
  lam_r: float | None = None
  rho: float | None = None
  erase_scale: float = 1.0
  preserve_scale: float = 0.1
  lamb: float = 0.1
  regularizer: str = "zero"
  rows: str = "sequential"
  tolerance: float = 0.0
  uce_preserve_scale: float | None = None
  uce_lamb: float | None = None
  truncate: bool = False

  def __post_init__(self):
    check_choice("rows", self.rows, ROWS)
    check_choice("regularizer", self.regularizer, REGULARIZERS)
    check_choice("preset", self.preset, PRESETS)
    if self.recipe:
      check_choice("recipe", self.recipe, RECIPES)
    closed_form.check_scales(
      uce_lamb=self.uce_scales["lamb"] or 0.0,
      uce_preserve_scale=self.uce_scales["preserve_scale"] or 0.0,
      preserve_scale=self.preserve_scale,
      erase_scale=self.erase_scale,
      lamb=self.lamb,
      tolerance=self.tolerance,
    )
    epochs = _given(self.epochs, 0)
    if not isinstance(epochs, int) or epochs < 0:
      raise ValueError(f"epochs={epochs!r}; allowed: whole numbers from 0")
    if self.lam_r is not None and self.rho is not None:
      raise ValueError(
        f"lam_r={self.lam_r} and rho={self.rho}: give one of them"
      )
    for name in ("lam_r", "rho"):
      value = _given(getattr(self, name), 1.0)
      if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{name}={value}; allowed: finite numbers above 0")

  @property
  def uce_scales(self) -> dict[str, float | None]:
    """The arguments of `uce.solve`."""
    published = PRESETS[self.preset]
    given = {"preserve_scale": self.uce_preserve_scale, "lamb": self.uce_lamb}
    return {k: published[k] if v is None else v for k, v in given.items()}


@dataclasses.dataclass(frozen=True)
class Epochs:
  """How RECE goes on from UCE.

  Attributes:
    epochs: how often to derive and erase, at most.
    lam_r: of the derivation.
    erase_scale: e of the erasing step.
    lamb: ridge of the erasing step.
    regularizer: of the derivation.
    tolerance: stop where `escape` is no more than this.
  """

  epochs: int
  lam_r: float
  erase_scale: float = 1.0
  lamb: float = 0.1
  regularizer: str = "zero"
  tolerance: float = 0.0


def refine(
  gram: Float64[np.ndarray, "d d"],
  start: Float64[np.ndarray, "d d"],
  pairs: Sequence[tuple[Float[np.ndarray, "l d"], Float[np.ndarray, "l d"]]],
  held: closed_form.Sums,
  how: Epochs,
  joint: tuple[closed_form.Sums, float] | None = None,
) -> tuple[Float64[np.ndarray, "d d"], list[dict[str, float]]]:
  """RECE's epochs, from a context map to a context map.

  Args:
    gram: S of the base projections.
    start: P to begin with, UCE's.
    pairs: (states, anchor's states) of every concept, all rows.
    held: sums of the preserved rows.
    how: the epochs.
    joint: the start's sums and ridge; then derived rows are added to them and
      all are solved anew from the base, `held` and `how.lamb` are not used.

  Returns:
    P, and per epoch `derived_norm` |C'| / |C|; how far the derived states are
    from the concept through the projections, relative, before the epoch's edit
    (`derive_residual`) and, after it, from the anchor (`erase_residual`; 1 is
    where the edit found them); `escape`, how far from the anchor they were
    before it, as a share of the concept's distance; `condition_number` and
    `solve_error`. Where it stopped, the last record has no edit.

  Raises:
    ValueError: a solve failed, or a state is not finite.
  """
  states = np.concatenate([np.asarray(s, np.float64) for s, _ in pairs])
  anchors = np.concatenate([np.asarray(a, np.float64) for _, a in pairs])
  whole, size = _seen(gram, states - anchors), _seen(gram, states)
  reached, report = start, []
  # Called only where another epoch needs it.
  products = functools.partial(Products.of, gram, start)
  for epoch in range(how.epochs):
    through = products()
    derived = derive_from(through, states, how.lam_r, how.regularizer, anchors)
    length = float(np.linalg.norm(derived) / np.linalg.norm(states))
    _warn_if_long(epoch, length, how.lam_r)
    # What the UNet sees of a row x is W x. The sequential targets are the
    # edited projections' own, the joint ones the base's.
    target = anchors if joint else anchors @ reached.T
    shown = derived @ reached.T
    before = _seen(gram, shown - target)
    found = {
      "derived_norm": length,
      "derive_residual": _seen(gram, shown - states) / size,
      "escape": before / whole if whole else 0.0,
    }
    report.append(found)
    if found["escape"] <= how.tolerance:
      break
    if joint:
      sums = closed_form.erase_sums(derived, anchors, how.erase_scale)
      joint = (joint[0] + sums, joint[1])
      reached, diagnostics = closed_form.solve(*joint)
      products = functools.partial(Products.of, gram, reached)
    else:
      pair = (derived, anchors, how.erase_scale)
      step, diagnostics = closed_form.solve_rows([pair], held, how.lamb)
      reached = step.after(reached)
      products = functools.partial(through.after, step)
    after = _seen(gram, derived @ reached.T - target)
    found |= {"erase_residual": after / before if before else 0.0}
    found |= diagnostics
  return reached, report


def _warn_if_long(epoch: int, length: float, lam_r: float) -> None:
  if length > _LONG:
    warnings.warn(
      f"epoch {epoch}: the derived states are {length:.0f} times as long as "
      f"the concept's; lam_r={lam_r} is small for these weights",
      stacklevel=3,
    )


def _seen(
  gram: Float64[np.ndarray, "d d"], rows: Float64[np.ndarray, "n d"]
) -> float:
  """|W x| over all projections and rows x."""
  return float(np.sqrt(np.sum((rows @ gram) * rows)))


def solve(
  task: uce.Task,
  gram: Float64[np.ndarray, "d d"],
  held: closed_form.Sums,
  how: Epochs,
  uce_scales: Mapping[str, float | None],
  rows: str = "sequential",
) -> tuple[Float64[np.ndarray, "d d"], dict[str, Any]]:
  """UCE, then RECE's epochs, on encoded phrases; arguments as `refine`.

  `rows` is one of `ROWS`, `uce_scales` are those of `uce.solve`. Diagnostics
  are UCE's and, under "epochs", one record an epoch.
  """
  scales: dict[str, Any] = dict(uce_scales)
  start, diagnostics = uce.solve(task, **scales)
  joint = None
  if rows == "joint":
    joint = diagnostics["preserve_scale"] * task.held
    for pair in task.pairs:
      joint += closed_form.erase_sums(*uce.paired_rows(*pair), 1.0)
    joint = (joint, scales.get("lamb", 0.5))
  pairs = [(source.rows, target.rows) for source, target in task.pairs]
  context_map, report = refine(gram, start, pairs, held, how, joint)
  return context_map, {**diagnostics, "lam_r": how.lam_r, "epochs": report}


def erase(
  sd: StableDiffusion,
  params: Params,
  concepts: Sequence[Concept],
  key: PRNGKeyArray | None,
  h: Hparams,
  hooks: Hooks = NO_HOOKS,
) -> Edit:
  """Erases `concepts` by UCE and RECE's epochs.

  Args:
    sd: the model.
    params: its parameters.
    concepts: what to erase; all of one task.
    key: unused, RECE draws nothing.
    h: the hyperparameters.
    hooks: unused, nothing takes long.

  Raises:
    ValueError: as `uce.erase`; the concepts are of several tasks.
  """
  del key, hooks
  kind = _one_task(concepts)
  recipe = h.recipe or _RECIPE_OF_TASK[kind]
  kernels = cross_attention_kernels(params)
  task = uce.encode_task(sd, params, concepts, truncate=h.truncate)
  gram = projection_gram(kernels)
  context_map, diagnostics = solve(
    task,
    gram,
    h.preserve_scale * _held(sd, params, task, kind),
    _epochs(h, recipe, gram),
    h.uce_scales,
    h.rows,
  )
  return make_edit(
    context_map,
    params,
    gram,
    method=f"{'rece' + '-joint' * (h.rows == 'joint')} {h.preset} {recipe}",
    concepts=concepts,
    diagnostics=diagnostics,
  )


def _epochs(
  h: Hparams, recipe: str, gram: Float64[np.ndarray, "d d"]
) -> Epochs:
  """The recipe's epochs, but for what is given instead."""
  published = RECIPES[recipe]
  lam_r = float(_given(h.lam_r, published["lam_r"]))
  if h.rho is not None:
    lam_r = h.rho * float(np.trace(gram)) / len(gram)
  return Epochs(
    _given(h.epochs, published["epochs"]),
    lam_r,
    h.erase_scale,
    h.lamb,
    h.regularizer,
    h.tolerance,
  )


def _held(
  sd: StableDiffusion, params: Params, task: uce.Task, kind: str
) -> closed_form.Sums:
  """The preserved rows of an epoch, each with weight 1."""
  repeats = len(task.pairs) - 1
  if kind != "unsafe" or not repeats:
    return task.held
  # The release preserves " " once per concept here, and once elsewhere.
  (empty,) = uce.encode(sd, params, [" "])
  return task.held + float(repeats) * closed_form.preserve_sums(empty.rows, 1.0)


def _given(value: float | None, default: Any) -> Any:
  return default if value is None else value


def _one_task(concepts: Sequence[Concept]) -> str:
  check_concepts(concepts)
  tasks = sorted({concept.task for concept in concepts})
  if len(tasks) > 1:
    raise ValueError(f"RECE erases one task at a time, got {', '.join(tasks)}")
  return tasks[0]
