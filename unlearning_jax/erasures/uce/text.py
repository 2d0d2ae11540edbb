"""UCE's phrases: which rows of their text states are erased, which are held."""

import dataclasses
from collections.abc import Collection, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from unlearning_jax import closed_form, stable_diffusion
from unlearning_jax.closed_form import Sums, mass
from unlearning_jax.concepts import (
  Concept,
  check_choice,
  check_concepts,
  phrase_pairs,
  preserved_phrases,
  same_phrase,
)
from unlearning_jax.projections import text_width
from unlearning_jax.stable_diffusion import Params, StableDiffusion
from unlearning_jax.tokens import check_tokens

# Phrases in one call of the text encoder; bounds memory for long lists.
_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Preset:
  """Where the two releases differ."""

  tail: bool  # whether all rows from the last subject token on are erased
  hold_empty: bool  # whether the empty prompt is always preserved
  template_anchors: bool  # whether anchors stand in templates too


PRESETS = {
  "uce2023": Preset(tail=True, hold_empty=True, template_anchors=False),
  "uce2025": Preset(tail=False, hold_empty=False, template_anchors=True),
}


@dataclasses.dataclass(frozen=True, eq=False)
class TextState:
  """A phrase as the projections see it.

  Attributes:
    rows: all text states, start of text and padding included.
    last: index of the phrase's last token; 0, the start, if it is empty.
  """

  rows: Float[np.ndarray, "l d"]
  last: int


def encode(
  sd: StableDiffusion,
  params: Params,
  phrases: Sequence[str],
  *,
  truncate: bool = False,
) -> Iterator[TextState]:
  """Encodes phrases in batches; yields their text states in order.

  Args:
    params: the base.
    truncate: cut phrases that are too long, with a warning.

  Raises:
    ValueError: a phrase is too long, or its states are not finite.
  """
  # All phrases are tokenized first, so that a long one is refused at once.
  ids = stable_diffusion.tokenize(sd, phrases, truncate=truncate)
  lasts = mass.last_tokens(sd, ids)
  # Batches have few sizes, all powers of two, and short ones are filled up:
  # the encoder is compiled once for each size.
  size = min(_BATCH, 1 << max(len(ids) - 1, 0).bit_length())
  # Move the weights to the device once, not for every batch.
  encoder = jax.tree.map(jnp.asarray, {"text_encoder": params["text_encoder"]})
  for start in range(0, len(ids), _BATCH):
    rows = np.minimum(np.arange(start, start + size), len(ids) - 1)
    batch = stable_diffusion.encode_text(sd, encoder, jnp.asarray(ids[rows]))
    stop = min(start + size, len(ids))
    for row, states in zip(range(start, stop), np.asarray(batch), strict=False):
      if not np.isfinite(states).all():
        raise ValueError(f"text states of {phrases[row]!r}: NaN or infinity")
      yield TextState(states, int(lasts[row]))


def paired_rows(
  source: TextState, target: TextState, preset: str = "uce2023"
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n d"]]:
  """The rows to erase, c, and the row c* whose value each of them takes.

  Raises:
    ValueError: `source` has no tokens. Its only row would be the start of text,
      which all prompts share.
  """
  if source.last < 1:
    raise ValueError("concepts: an erased phrase has no tokens; give it words")
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
  """An edit's encoded phrases, all that `solve` needs.

  Attributes:
    preset: "uce2023" or "uce2025".
    pairs: (erased, anchor).
    held: sums of the preserved rows, each with weight 1.
    held_phrases: the number of preserved phrases.
    held_names: the preserved phrases; may be empty.
  """

  preset: str
  pairs: Sequence[tuple[TextState, TextState]]
  held: Sums
  held_phrases: int
  held_names: tuple[str, ...] = ()


def encode_task(
  sd: StableDiffusion,
  params: Params,
  concepts: Sequence[Concept],
  *,
  preset: str = "uce2023",
  expand_prompts: bool = False,
  known: Collection[str] = (),
  allow_conflict: bool = False,
  truncate: bool = False,
) -> Task:
  """Checks the concepts and encodes each distinct phrase once.

  The states of preserved phrases are added to sums as they come, so that a list
  of thousands needs no more memory than a short one.

  Args:
    params: the base.
    concepts: what to erase, each with its anchor and what it preserves.
    preset: "uce2023" or "uce2025".
    expand_prompts: see `Hparams`.
    known: preserved phrases to leave out, because other sums hold them.
    allow_conflict: see `Hparams`.
    truncate: see `Hparams`.

  Raises:
    ValueError: an unusable concept or phrase.
  """
  check_choice("preset", preset, PRESETS)
  check_concepts(concepts, allow_conflict=allow_conflict)
  check_tokens(
    sd.tokenizer,
    concepts,
    allow_conflict=allow_conflict,
    length=sd.context_shape[0],
  )
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
  sums = Sums.zero(text_width(params))
  phrases = sorted(paired | held)
  encoded = encode(sd, params, phrases, truncate=truncate)
  for phrase, state in zip(phrases, encoded, strict=True):
    if phrase in paired:
      states[phrase] = state
    if phrase in held:
      one = slice(state.last, state.last + 1)
      rows = state.rows if variant.tail else state.rows[one]
      sums += closed_form.preserve_sums(rows, 1.0)
  rows = [(states[erase], states[anchor]) for erase, anchor in pairs]
  return Task(preset, rows, sums, len(held), tuple(sorted(held)))
