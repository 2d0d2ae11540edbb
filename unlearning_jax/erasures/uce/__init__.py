"""UCE: Unified Concept Editing in Diffusion Models (Gandikota et al., 2024).

Erased text states are made to mean their anchor's, preserved ones are held, in
every cross-attention key and value projection, in closed form (`closed_form`
has the equations). Two releases exist, and they are different methods:

  uce2023  from a phrase's last subject token on, every token to the end (end of
           text and padding) is sent to the anchor's token as far from its own
           last subject token. All tokens of preserved phrases are held, the
           empty prompt always. This is the paper's, and the one RECE builds on.
  uce2025  one token a phrase, the last of its subject; nothing else is held.

With an empty anchor the last subject token becomes the start-of-text token.

Reference: https://arxiv.org/abs/2308.14761
"""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from unlearning_jax import closed_form, stable_diffusion
from unlearning_jax.closed_form import Edit, Sums, mass, statistics
from unlearning_jax.closed_form.statistics import Statistics
from unlearning_jax.concepts import (
  Concept,
  check_choice,
  check_concepts,
  check_tokens,
  phrase_pairs,
  preserved_phrases,
  same_phrase,
)

# Phrases in one call of the text encoder: bounds memory for long lists.
_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Preset:
  """Where the two published variants differ."""

  tail: bool  # rows: from the last subject token on, or that token alone
  hold_empty: bool  # the empty prompt is always preserved
  template_anchors: bool  # templates apply to anchors too


PRESETS = {
  "uce2023": Preset(tail=True, hold_empty=True, template_anchors=False),
  "uce2025": Preset(tail=False, hold_empty=False, template_anchors=True),
}
# "tensor", the release's other technique, subtracts what the anchor's value has
# of the erased one, another amount in every layer: no one context map does it,
# and its authors advise against it.
TECHNIQUES = ("replace",)


@dataclasses.dataclass(frozen=True, eq=False)
class TextState:
  """A phrase as the projections see it.

  Attributes:
    rows: text states, (l, d), start and padding included.
    last: index of the phrase's last token; 0, the start, of an empty phrase.
  """

  rows: Float[np.ndarray, "l d"]
  last: int


def encode(sd: Any, params: Any, phrases: Sequence[str]) -> Iterator[TextState]:
  """The text states of `phrases`, in order, encoded in batches.

  Raises:
    ValueError: naming the phrase, if it is too long or its states are not
      finite.
  """
  # All of them first: a phrase that is too long is refused before any work.
  ids = stable_diffusion.tokenize(sd, phrases)
  lasts = mass.last_tokens(sd, ids)
  # Few sizes, all powers of two, and short batches filled up: the encoder is
  # compiled once for each.
  size = min(_BATCH, 1 << max(len(ids) - 1, 0).bit_length())
  for start in range(0, len(ids), _BATCH):
    rows = np.minimum(np.arange(start, start + size), len(ids) - 1)
    batch = stable_diffusion.encode_text(sd, params, jnp.asarray(ids[rows]))
    stop = min(start + size, len(ids))
    for row, states in zip(range(start, stop), np.asarray(batch), strict=False):
      if not np.isfinite(states).all():
        raise ValueError(f"text states of {phrases[row]!r}: NaN or infinity")
      yield TextState(states, int(lasts[row]))


def paired_rows(
  source: TextState, target: TextState, preset: str = "uce2023"
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n d"]]:
  """The rows to erase, and the rows that say what each of them shall mean.

  Raises:
    ValueError: `source` has no token of its own: its only row would be the
      start token that all prompts share.
  """
  if source.last < 1:
    raise ValueError("an erased phrase has no tokens")
  if PRESETS[preset].tail:
    count = len(source.rows) - max(source.last, target.last)
  else:
    count = 1
  return (
    source.rows[source.last : source.last + count],
    target.rows[target.last : target.last + count],
  )


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
  """An edit's phrases, encoded; `solve` needs nothing else.

  Attributes:
    preset: "uce2023" or "uce2025".
    pairs: (erased, anchor).
    held: sums of the preserved rows, each with weight 1.
    held_phrases: how many phrases that is.
    held_names: which; may be left out.
  """

  preset: str
  pairs: Sequence[tuple[TextState, TextState]]
  held: Sums
  held_phrases: int
  held_names: tuple[str, ...] = ()


def encode_task(
  sd: Any,
  params: Any,
  concepts: Sequence[Concept],
  *,
  preset: str = "uce2023",
  expand_prompts: bool = False,
  known: Collection[str] = (),
  allow_conflict: bool = False,
) -> Task:
  """Checks the concepts and encodes each distinct phrase once.

  The states of preserved phrases are summed as they come: a list of thousands
  needs no more memory than a short one. Those in `known` are left out.
  """
  check_choice("preset", preset, PRESETS)
  check_concepts(concepts, allow_conflict=allow_conflict)
  check_tokens(sd.tokenizer, concepts, allow_conflict=allow_conflict)
  variant = PRESETS[preset]
  pairs = phrase_pairs(
    concepts,
    expand=expand_prompts,
    template_anchors=variant.template_anchors,
  )
  preserved = preserved_phrases(concepts)
  held = {"", *preserved} if variant.hold_empty else set(preserved)
  names = {same_phrase(phrase) for phrase in known}
  held = {phrase for phrase in held if same_phrase(phrase) not in names}
  paired = {phrase for pair in pairs for phrase in pair}

  states: dict[str, TextState] = {}
  sums = Sums.zero(closed_form.text_width(params))
  phrases = sorted(paired | held)
  for phrase, state in zip(phrases, encode(sd, params, phrases), strict=True):
    if phrase in paired:
      states[phrase] = state
    if phrase in held:
      one = slice(state.last, state.last + 1)
      rows = state.rows if variant.tail else state.rows[one]
      sums += closed_form.preserve_sums(rows, 1.0)
  encoded = [(states[erase], states[anchor]) for erase, anchor in pairs]
  return Task(preset, encoded, sums, len(held), tuple(sorted(held)))


def solve(
  task: Task,
  *,
  erase_scale: float = 1.0,
  preserve_scale: float | None = None,
  lamb: float = 0.5,
) -> tuple[Float64[np.ndarray, "d d"], dict[str, Any]]:
  """The context map T of an edit, and its diagnostics; arguments as `erase`.

  Raises:
    ValueError: a scale is negative or not finite, or the system is not positive
      definite.
  """
  if preserve_scale is None:
    preserve_scale = _published_scale(task)
  rows = [paired_rows(*pair, task.preset) for pair in task.pairs]
  return closed_form.solve_pairs(
    [(*pair, erase_scale) for pair in rows], task.held, preserve_scale, lamb
  )


def _published_scale(task: Task) -> float:
  """The preserve scale where none is given."""
  if not PRESETS[task.preset].tail:
    return 1.0
  return max(0.1, 1 / max(task.held_phrases, 1))


def gather(
  sd: Any,
  params: Any,
  concepts: Sequence[Concept],
  *,
  base: str | None = None,
  preset: str = "uce2023",
  erase_scale: float = 1.0,
  preserve_scale: float | None = None,
  lamb: float = 0.5,
  expand_prompts: bool = False,
  allow_conflict: bool = False,
) -> Statistics:
  """What `erase` solves, to keep beside the edit; see `closed_form.statistics`.

  `statistics.edit_of` makes the edit of it; arguments as `erase`, and `base`,
  the fingerprint of `params` where it is known.
  """
  closed_form.check_scales(
    erase_scale=erase_scale,
    preserve_scale=0.0 if preserve_scale is None else preserve_scale,
    lamb=lamb,
  )
  task = encode_task(
    sd,
    params,
    concepts,
    preset=preset,
    expand_prompts=expand_prompts,
    allow_conflict=allow_conflict,
  )
  if preserve_scale is None:
    preserve_scale = _published_scale(task)
  return Statistics(
    closed_form.base_fingerprint(params) if base is None else base,
    preset,
    _erased(task, concepts, erase_scale),
    task.held,
    task.held_names,
    preserve_scale,
    lamb,
  )


def extend(
  sd: Any,
  params: Any,
  known: Statistics,
  concepts: Sequence[Concept],
  *,
  erase_scale: float = 1.0,
  expand_prompts: bool = False,
) -> Statistics:
  """Erases `concepts` too; the other arguments stay those of `known`.

  Raises:
    ValueError: as `gather`; `params` are not the base, an edited model least of
      all; a concept is erased or preserved already.
  """
  statistics.check_same_base(known, params)
  closed_form.check_scales(erase_scale=erase_scale)
  task = encode_task(
    sd,
    params,
    concepts,
    preset=known.method,
    expand_prompts=expand_prompts,
    known=known.held_phrases,
  )
  more = dataclasses.replace(
    known,
    erased=_erased(task, concepts, erase_scale),
    held=task.held,
    held_phrases=task.held_names,
  )
  return statistics.add(known, more)


def _erased(
  task: Task, concepts: Sequence[Concept], scale: float
) -> tuple[statistics.Erased, ...]:
  """The rows of each concept, those of its templates included."""
  rows = [paired_rows(*pair, task.preset) for pair in task.pairs]
  each = len(rows) // len(concepts)
  erased = []
  for i, concept in enumerate(concepts):
    own = rows[i * each : (i + 1) * each]
    source, target = (np.concatenate(side) for side in zip(*own, strict=True))
    erased.append(statistics.Erased(concept, source, target, scale))
  return tuple(erased)


def erase(
  sd: Any,
  params: Any,
  concepts: Sequence[Concept],
  key: Array | None = None,
  *,
  preset: str = "uce2023",
  technique: str = "replace",
  erase_scale: float = 1.0,
  preserve_scale: float | None = None,
  lamb: float = 0.5,
  expand_prompts: bool = False,
  allow_conflict: bool = False,
  keep: Callable[[Statistics], None] | None = None,
) -> Edit:
  """Erases `concepts` by UCE.

  Args:
    sd: the model.
    params: its parameters.
    concepts: what to erase, towards what, and what to preserve.
    key: unused, UCE draws nothing.
    preset: "uce2023" or "uce2025".
    technique: "replace".
    erase_scale: e, weight of the erased rows.
    preserve_scale: p, weight of the preserved rows; None for the release's own,
      max(0.1, 1 / preserved phrases) in uce2023, 1 in uce2025.
    lamb: weight of the distance to the base weights.
    expand_prompts: add the task's templates ("image of ...").
    allow_conflict: whether a phrase may be both erased and preserved; it then
      ends in between, as the scales say.
    keep: is given the statistics for a re-solve.

  Raises:
    ValueError: a phrase, a preset or a scale is not usable; the system is not
      positive definite; the edit changes nothing.
  """
  del key
  check_choice("technique", technique, TECHNIQUES)
  kernels = closed_form.cross_attention_kernels(params)
  gathered = gather(
    sd,
    params,
    concepts,
    base="",  # `make_edit` hashes the weights, and once is enough
    preset=preset,
    erase_scale=erase_scale,
    preserve_scale=preserve_scale,
    lamb=lamb,
    expand_prompts=expand_prompts,
    allow_conflict=allow_conflict,
  )
  context_map, diagnostics = statistics.solution(gathered)
  edit = closed_form.make_edit(
    context_map,
    params,
    closed_form.projection_gram(kernels),
    method=preset,
    concepts=concepts,
    diagnostics=diagnostics,
  )
  if keep is not None:
    keep(dataclasses.replace(gathered, base=edit.base))
  return edit
