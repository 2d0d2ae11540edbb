"""TIME: Editing Implicit Assumptions in Text-to-Image Diffusion Models (2023).

TIME preceded UCE. It makes a phrase ("roses") mean a longer one ("blue roses").
Every token c of the first takes the value of the same token c* in the second.
The remaining tokens, end of text and padding, correspond in order. All rows
take part, in keys and values, and only the ridge preserves anything:

  W' = (lamb W + sum W c* c^T) (lamb I + sum c c^T)^-1 ,   lamb = 0.1 .

Each pair also stands in three sentences ("A photo of ..."). The method edits
assumptions; it is no baseline for erasure. Its closed form is a context map,
see `closed_form`.

Reference: https://arxiv.org/abs/2303.08084
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, PRNGKeyArray

from unlearning_jax import closed_form
from unlearning_jax.closed_form import Sums
from unlearning_jax.concepts import (
  Concept,
  check_choice,
  check_concepts,
  preserved_phrases,
)
from unlearning_jax.edits import Edit, make_edit
from unlearning_jax.erasures import NO_HOOKS, Hooks, uce
from unlearning_jax.projections import (
  cross_attention_kernels,
  projection_gram,
  text_width,
)
from unlearning_jax.stable_diffusion import Params, StableDiffusion
from unlearning_jax.tokens import check_tokens

_SENTENCES = ("{}", "A photo of {}", "An image of {}", "A picture of {}")
# They differ only if the anchor lacks one of the concept's tokens. The release
# then fails with an IndexError, and "reference" raises a ValueError. "fixed"
# takes the anchor's next token instead, so that any anchor works.
PRESETS = ("fixed", "reference")
CHANGES = ("unet/*/attn2/to_[kv]/kernel",)
NEEDS = "nothing"


@dataclasses.dataclass(frozen=True)
class Hparams:
  """TIME's hyperparameters.

  Attributes:
    preset: "fixed" or "reference".
    augment: also edit the three sentences.
    erase_scale: e, the weight of edited rows; 1 in the release.
    preserve_scale: the weight of preserved rows; the release has none.
    lamb: the ridge.
  """

  preset: str = "fixed"
  augment: bool = True
  erase_scale: float = 1.0
  preserve_scale: float = 1.0
  lamb: float = 0.1

  def __post_init__(self):
    check_choice("preset", self.preset, PRESETS)
    closed_form.check_scales(
      erase_scale=self.erase_scale,
      preserve_scale=self.preserve_scale,
      lamb=self.lamb,
    )


def align(
  source: Sequence[int],
  target: Sequence[int],
  length: int,
  preset: str = "fixed",
) -> Int[np.ndarray, " length"]:
  """For each row of the source, the row of the target whose value it takes.

  Args:
    source: the phrase's token ids with start and end, without padding.
    target: the anchor's token ids, likewise.
    length: l, the rows of a text state.
    preset: "fixed" or "reference".

  Raises:
    ValueError: the preset is "reference" and the target does not have the
      source's tokens in the source's order.
  """
  rows, after = [], 0
  for position, token in enumerate(source):
    found = next(
      (j for j in range(after, len(target)) if target[j] == token), None
    )
    if found is None and preset == "reference":
      raise ValueError(
        f"token {position} of the phrase, id {token}, is not in the anchor; "
        "TIME's release needs all of them there, in order; preset='fixed' "
        "takes any anchor"
      )
    # A missing token takes the next one's value without using that token up.
    rows.append(min(after, length - 1) if found is None else found)
    after = after if found is None else found + 1
  rows += range(after, length)
  rows = rows[:length]
  return np.array(rows + [length - 1] * (length - len(rows)))


def sentences(phrase: str) -> tuple[str, ...]:
  """The phrase alone, then in TIME's three sentences."""
  inside = "a" + phrase[1:] if phrase[:1] == "A" else phrase
  return phrase, *(s.format(inside) for s in _SENTENCES[1:])


def erase(
  sd: StableDiffusion,
  params: Params,
  concepts: Sequence[Concept],
  key: PRNGKeyArray | None,
  h: Hparams,
  hooks: Hooks = NO_HOOKS,
) -> Edit:
  """Makes each concept mean its anchor, token by token.

  Arguments as `Erasure`; TIME uses neither `key` nor `hooks`.

  Raises:
    ValueError: an unusable phrase; an anchor without a token of its concept,
      with "reference"; an edit that changes nothing.
  """
  del key, hooks
  check_concepts(concepts)
  check_tokens(sd.tokenizer, concepts)
  kernels = cross_attention_kernels(params)
  pairs = [
    pair
    for concept in concepts
    for pair in zip(
      sentences(concept.erase), sentences(concept.anchor), strict=True
    )
  ]
  pairs = pairs if h.augment else pairs[:: len(_SENTENCES)]
  rows = [_rows(sd, pair, h.preset) for pair in pairs]
  held = preserved_phrases(concepts)
  phrases = sorted({phrase for pair in pairs for phrase in pair} | set(held))
  encoded = uce.encode(sd, params, phrases)
  states = dict(zip(phrases, encoded, strict=True))
  sums = Sums.zero(text_width(params))
  for phrase in held:
    sums += closed_form.preserve_sums(states[phrase].rows, 1.0)
  context_map, diagnostics = closed_form.solve_pairs(
    [
      (states[erased].rows, states[anchor].rows[row], h.erase_scale)
      for (erased, anchor), row in zip(pairs, rows, strict=True)
    ],
    sums,
    h.preserve_scale,
    h.lamb,
  )
  return make_edit(
    context_map,
    params,
    projection_gram(kernels),
    method=f"time {h.preset}",
    concepts=concepts,
    diagnostics=diagnostics,
  )


def _rows(
  sd: StableDiffusion, pair: tuple[str, str], preset: str
) -> Int[np.ndarray, " length"]:
  """`align` of a pair's tokens, where "an" counts as "a"."""
  ids = sd.tokenizer(["a", "an", *pair])["input_ids"]
  (a, an), both = (row[1:-1] for row in ids[:2]), ids[2:]
  if len(a) == len(an) == 1:
    both = [
      [a[0] if token == an[0] else token for token in row] for row in both
    ]
  try:
    return align(*both, sd.context_shape[0], preset)
  except ValueError as error:
    raise ValueError(f"{pair[0]!r} -> {pair[1]!r}: {error}") from error
