"""RECE: Reliable and Efficient Concept Erasure (Gong et al., 2024).

RECE starts with UCE. Each epoch then derives the text states C' that still
bring the concept back through the edited projections, and erases them.

Every edited projection is W P with one context map P (see `closed_form`), so an
epoch needs only P and S = sum of W^T W over the base projections. C are the
concept's own states:

  derive  min_C'  sum |W P C'^T - W C^T|^2 + lam_r |C'|^2
          C'^T = M^-1 P^T S C^T,   M = P^T S P + lam_r I   (`derivation`)
  erase   P <- P (I + D A^-1), which sends C' to the anchor's states by row;
          `closed_form` has D and A.

As in the release, an epoch takes the anchor's values, the preserved values and
the ridge from the edited projections, and uses all rows of a phrase, even the
start of text.

So an epoch does not hold what was erased before it. If C' differs from C only
by what UCE learned to detect, the epoch undoes UCE: on the Shapes model the
concept comes back. The extension `rows="joint"` prevents that. It solves P
again from the base, for UCE's rows and all rows derived so far. Two more
extensions are off by default: the release's other regularizers of the
derivation, and a stop once derived states bring back no more than a given share
of the concept.

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

# The published settings by kind of concept. UCE leaves "hard" objects
# recognizable (church, garbage truck), and not "easy" ones (English springer,
# golf ball, parachute).
RECIPES = {
  "nudity": {"lam_r": 1e-1, "epochs": 3},
  "unsafe": {"lam_r": 1e-1, "epochs": 2},
  "artists": {"lam_r": 1e-3, "epochs": 1},
  "objects_hard": {"lam_r": 1e-3, "epochs": 1},
  "objects_easy": {"lam_r": 1e-1, "epochs": 1},
}
# Their script preserves " " once for each concept, and the others only once.
_EMPTY_EACH = ("nudity", "unsafe")
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
# A derived state this many times longer than the concept's own resembles no
# text state. Then lam_r is too small.
_LONG = 10


@dataclasses.dataclass(frozen=True)
class Hparams:
  """RECE's hyperparameters.

  Attributes:
    preset: UCE's coefficients, those of the release ("reference") or "paper".
    recipe: a name in `RECIPES`; None follows the concepts' task.
    epochs: replaces the recipe's; 0 is UCE alone.
    lam_r: ridge of the derivation, in units of S; replaces the recipe's.
    rho: sets lam_r = rho trace(S) / d, without units; an extension.
    erase_scale: e, the weight of C' in an epoch.
    preserve_scale: p, the weight of preserved rows in an epoch.
    lamb: ridge of an epoch; `rows="joint"` has UCE's, `uce_lamb`, instead.
    regularizer: the derivation's, a name in `derivation.REGULARIZERS`; the
      paper has "zero".
    rows: "sequential", or "joint" to solve for all rows from the base.
    tolerance: the least `escape` (see `refine`) that continues.
    uce_preserve_scale: p of UCE; None for the preset's.
    uce_lamb: ridge of UCE; None for the preset's.
    truncate: see `uce.Hparams`.
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
    """The scales of `uce.solve`."""
    published = PRESETS[self.preset]
    given = {"preserve_scale": self.uce_preserve_scale, "lamb": self.uce_lamb}
    return {k: published[k] if v is None else v for k, v in given.items()}


@dataclasses.dataclass(frozen=True)
class Epochs:
  """The settings of RECE's epochs.

  Attributes:
    epochs: the most epochs.
    lam_r: ridge of the derivation.
    erase_scale: e of the erasing step.
    lamb: ridge of the erasing step.
    regularizer: the derivation's, a name in `derivation.REGULARIZERS`.
    tolerance: the epochs stop when `escape` is no more than this.
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
  """Runs RECE's epochs on a context map.

  Args:
    gram: S of the base projections.
    start: UCE's P.
    pairs: (C, the anchor's states) of every concept, all rows.
    held: sums of the preserved rows.
    joint: UCE's sums and ridge, for `rows="joint"`. Each epoch then adds its
      derived rows and solves for all from the base, without `held` and
      `how.lamb`.

  Returns:
    P, and a record for each epoch. Distances are those of projected states:
      derived_norm       |C'| / |C|
      derive_residual    |W P C' - W C| / |W C|, before the edit
      escape             C' to the anchor before the edit, as a share of C to
                         the anchor
      erase_residual     C' to the anchor after the edit, as a share of before
      condition_number, solve_error
    If the epochs stop early, the last record has no edit.

  Raises:
    ValueError: a solve failed, or a state is not finite.
  """
  states = np.concatenate([np.asarray(s, np.float64) for s, _ in pairs])
  anchors = np.concatenate([np.asarray(a, np.float64) for _, a in pairs])
  whole, size = _seen(gram, states - anchors), _seen(gram, states)
  reached, report = start, []
  # A function, because the last epoch needs no products after it.
  products = functools.partial(Products.of, gram, start)
  for epoch in range(how.epochs):
    through = products()
    derived = derive_from(through, states, how.lam_r, how.regularizer, anchors)
    length = float(np.linalg.norm(derived) / np.linalg.norm(states))
    _warn_if_long(epoch, length, how.lam_r)
    # The UNet sees a row x as W x. Sequential epochs aim at the anchor's values
    # through the edited projections, joint ones through the base's.
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
  """The norm of W x over all projections W and rows x."""
  return float(np.sqrt(np.sum((rows @ gram) * rows)))


def solve(
  task: uce.Task,
  gram: Float64[np.ndarray, "d d"],
  held: closed_form.Sums,
  how: Epochs,
  uce_scales: Mapping[str, float | None],
  rows: str = "sequential",
) -> tuple[Float64[np.ndarray, "d d"], dict[str, Any]]:
  """Runs UCE, then RECE's epochs, on encoded phrases.

  Args:
    task: the encoded phrases.
    gram: S of the base projections.
    held: sums of the rows that epochs preserve.
    uce_scales: the scales of `uce.solve`.
    rows: a name in `ROWS`.

  Returns:
    P, and UCE's diagnostics with `lam_r` and the records of `refine` under
    `epochs`.
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
  """Erases `concepts`, all of one task, by RECE.

  Arguments as `Erasure`; RECE uses neither `key` nor `hooks`.

  Raises:
    ValueError: concepts of several tasks, or what `uce.erase` refuses.
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
    h.preserve_scale * _held(sd, params, task, recipe),
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
  """The recipe's epochs, with the hyperparameters that replace its own."""
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
  sd: StableDiffusion, params: Params, task: uce.Task, recipe: str
) -> closed_form.Sums:
  """The preserved rows of an epoch, each with weight 1."""
  repeats = len(task.pairs) - 1
  if recipe not in _EMPTY_EACH or not repeats:
    return task.held
  (empty,) = uce.encode(sd, params, [" "])
  return task.held + float(repeats) * closed_form.preserve_sums(empty.rows, 1.0)


def _given(value: float | None, default: Any) -> Any:
  return default if value is None else value


def _one_task(concepts: Sequence[Concept]) -> str:
  check_concepts(concepts)
  tasks = sorted({concept.task for concept in concepts})
  if len(tasks) > 1:
    raise ValueError(
      f"tasks {', '.join(tasks)}: RECE erases one task at a time; erase the "
      "concepts of each in a run of its own"
    )
  return tasks[0]
