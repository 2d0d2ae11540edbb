"""UCE: Unified Concept Editing in Diffusion Models (Gandikota et al., 2024).

In every cross-attention key and value projection W, erased text states c take
the values of their anchor's states c*, and preserved states q keep theirs:

  min_W'  e sum |W' c - W c*|^2 + p sum |W' q - W q|^2 + lamb |W' - W|^2

`closed_form` has the solution, one context map for all projections. Two
releases exist, and they are different methods:

  uce2023  erases every row from a phrase's last subject token to the end (end
           of text and padding). Each takes the value of the anchor's row at the
           same distance from the anchor's last subject token. All rows of
           preserved phrases and of the empty prompt are held. This is the
           paper's method, and RECE builds on it.
  uce2025  erases one row a phrase, the last subject token, and holds one row of
           each preserved phrase.

With an empty anchor the last subject token takes the value of the start of
text.

The releases also have the technique "tensor", which sends a phrase to the part
of its anchor's value that is orthogonal to its own (`closed_form.orthogonal`).
This target differs between projections, so the edit is no context map but
changed projections. The authors call it an early experiment and advise against
it.

Reference: https://arxiv.org/abs/2308.14761
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, PRNGKeyArray

from unlearning_jax import closed_form
from unlearning_jax.closed_form import statistics
from unlearning_jax.closed_form.statistics import Statistics
from unlearning_jax.concepts import Concept, check_choice
from unlearning_jax.edits import Edit, edit_between, make_edit
from unlearning_jax.erasures import NO_HOOKS, Hooks
from unlearning_jax.erasures.uce.text import PRESETS, Task, paired_rows
from unlearning_jax.erasures.uce.text import TextState as TextState
from unlearning_jax.erasures.uce.text import encode as encode
from unlearning_jax.erasures.uce.text import encode_task as encode_task
from unlearning_jax.projections import (
  base_fingerprint,
  cross_attention_kernels,
  projection_gram,
  with_kernels,
)
from unlearning_jax.stable_diffusion import Params, StableDiffusion

TECHNIQUES = ("replace", "tensor")
CHANGES = ("unet/*/attn2/to_[kv]/kernel",)
NEEDS = "nothing"


@dataclasses.dataclass(frozen=True)
class Hparams:
  """UCE's hyperparameters.

  Attributes:
    preset: "uce2023" or "uce2025".
    technique: "replace" or "tensor".
    erase_scale: e, the weight of erased rows.
    preserve_scale: p, the weight of preserved rows. None for the release's:
      max(0.1, 1 / preserved phrases) in uce2023, 1 in uce2025.
    lamb: the ridge, the weight of |W' - W|^2.
    expand_prompts: also erase the phrases in the task's templates, as "image of
      ...".
    allow_conflict: whether a phrase may be both erased and preserved. The
      scales then decide how far it moves.
    truncate: cut phrases that are too long for the text encoder, as the
      releases do, with a warning; by default they are refused.
  """

  preset: str = "uce2023"
  technique: str = "replace"
  erase_scale: float = 1.0
  preserve_scale: float | None = None
  lamb: float = 0.5
  expand_prompts: bool = False
  allow_conflict: bool = False
  truncate: bool = False

  def __post_init__(self):
    check_choice("preset", self.preset, PRESETS)
    check_choice("technique", self.technique, TECHNIQUES)
    closed_form.check_scales(
      erase_scale=self.erase_scale,
      preserve_scale=self.preserve_scale or 0.0,
      lamb=self.lamb,
    )

  @property
  def scales(self) -> dict[str, Any]:
    """The keyword arguments of `solve`."""
    return {
      name: getattr(self, name)
      for name in ("erase_scale", "preserve_scale", "lamb")
    }

  @property
  def rules(self) -> dict[str, Any]:
    """The keyword arguments of `encode_task`."""
    names = ("preset", "expand_prompts", "allow_conflict", "truncate")
    return {name: getattr(self, name) for name in names}


def solve(
  task: Task,
  *,
  erase_scale: float = 1.0,
  preserve_scale: float | None = None,
  lamb: float = 0.5,
) -> tuple[Float64[np.ndarray, "d d"], dict[str, Any]]:
  """The context map T of an edit, and diagnostics; scales as in `Hparams`.

  Raises:
    ValueError: a scale is negative or not finite, or the system is not positive
      definite.
  """
  return closed_form.solve_pairs(
    *_weighted(task, erase_scale, preserve_scale), lamb
  )


def solve_tensor(
  task: Task,
  kernels: Mapping[str, Any],
  *,
  erase_scale: float = 1.0,
  preserve_scale: float | None = None,
  lamb: float = 0.5,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Like `solve` with "tensor"; returns the changed kernels by path."""
  return closed_form.solve_orthogonal(
    kernels, *_weighted(task, erase_scale, preserve_scale), lamb
  )


def _weighted(task: Task, erase_scale: float, preserve_scale: float | None):
  """Pairs of rows with e, the preserved sums, and p."""
  if preserve_scale is None:
    preserve_scale = _published_scale(task)
  rows = (paired_rows(*pair, task.preset) for pair in task.pairs)
  return [(*pair, erase_scale) for pair in rows], task.held, preserve_scale


def _published_scale(task: Task) -> float:
  """The release's preserve scale."""
  if not PRESETS[task.preset].tail:
    return 1.0
  return max(0.1, 1 / max(task.held_phrases, 1))


def gather(
  sd: StableDiffusion,
  params: Params,
  concepts: Sequence[Concept],
  h: Hparams,
  base: str | None = None,
) -> Statistics:
  """The sums that `erase` solves, see `closed_form.statistics`.

  Arguments as `erase`; `base` is the fingerprint of `params`, computed if None.
  `statistics.edit_of` turns the sums into an edit.
  """
  task = encode_task(sd, params, concepts, **h.rules)
  scale = h.preserve_scale
  return Statistics(
    base_fingerprint(params) if base is None else base,
    h.preset,
    _erased(task, concepts, h.erase_scale),
    task.held,
    task.held_names,
    _published_scale(task) if scale is None else scale,
    h.lamb,
    h.erase_scale,
    h.expand_prompts,
  )


def extend(
  sd: StableDiffusion,
  params: Params,
  known: Statistics,
  concepts: Sequence[Concept],
) -> Statistics:
  """Adds `concepts` to an erasure, with its settings.

  Args:
    params: the base of `known`.
    known: the sums of the erasure so far.
    concepts: what to erase besides.

  Raises:
    ValueError: an unusable phrase, `params` that are not the base, or a concept
      that is already erased or preserved.
  """
  statistics.check_more(known, concepts)
  statistics.check_same_base(known, params)
  task = encode_task(
    sd,
    params,
    concepts,
    preset=known.method,
    expand_prompts=known.expand_prompts,
    known=known.held_phrases,
  )
  more = dataclasses.replace(
    known,
    erased=_erased(task, concepts, known.erase_scale),
    held=task.held,
    held_phrases=task.held_names,
  )
  return statistics.add(known, more)


def _erased(
  task: Task, concepts: Sequence[Concept], scale: float
) -> tuple[statistics.Erased, ...]:
  """Each concept's rows, with those of its templates."""
  rows = [paired_rows(*pair, task.preset) for pair in task.pairs]
  each = len(rows) // len(concepts)
  erased = []
  for i, concept in enumerate(concepts):
    own = rows[i * each : (i + 1) * each]
    source, target = (np.concatenate(side) for side in zip(*own, strict=True))
    erased.append(statistics.Erased(concept, source, target, scale))
  return tuple(erased)


def erase(
  sd: StableDiffusion,
  params: Params,
  concepts: Sequence[Concept],
  key: PRNGKeyArray | None,
  h: Hparams,
  hooks: Hooks = NO_HOOKS,
) -> Edit:
  """Erases `concepts` by UCE.

  Arguments as `Erasure`; UCE does not use `key`. It uses `hooks.keep`, except
  for "tensor", which has no statistics.

  Raises:
    ValueError: an unusable phrase, a system that is not positive definite, or
      an edit that changes nothing.
  """
  del key
  kernels = cross_attention_kernels(params)
  if h.technique == "tensor":
    task = encode_task(sd, params, concepts, **h.rules)
    changed, diagnostics = solve_tensor(task, kernels, **h.scales)
    return edit_between(
      params,
      with_kernels(params, changed),
      method=f"{h.preset} tensor",
      concepts=concepts,
      diagnostics=diagnostics,
    )
  # No fingerprint here: `make_edit` computes it, and once is enough.
  gathered = gather(sd, params, concepts, h, base="")
  context_map, diagnostics = statistics.solution(gathered)
  edit = make_edit(
    context_map,
    params,
    projection_gram(kernels),
    method=h.preset,
    concepts=concepts,
    diagnostics=diagnostics,
  )
  hooks.keep(dataclasses.replace(gathered, base=edit.base.digest))
  return edit
