"""TIME: Editing Implicit Assumptions in Text-to-Image Diffusion Models (2023).

The method that UCE grew from. A phrase ("roses") is made to mean a longer one
("blue roses"): every token of the first takes the meaning of the same token in
the second, where that stands later in the sentence; what follows, end of text
and padding, is aligned in order. All rows take part, keys and values alike, and
nothing is preserved but by the ridge:

  W' = (lamb W + sum W c* c^T) (lamb I + sum c c^T)^-1 ,   lamb = 0.1 .

Each pair also stands in three sentences ("A photo of ..."). This is an edit of
assumptions, no erasure baseline; as an alignment it may be of use to others.
In closed form it is a context map, see `closed_form`.

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
# Where the anchor lacks one of the concept's tokens, the release fails with an
# IndexError ("reference" tells so); "fixed" sends such a token to the anchor's
# next one, so that any anchor can be given. Else they are the same.
PRESETS = ("fixed", "reference")
CHANGES = ("unet/*/attn2/to_[kv]/kernel",)
NEEDS = "nothing"


@dataclasses.dataclass(frozen=True)
class Hparams:
  """TIME's hyperparameters.

  Attributes:
    preset: "fixed" or "reference".
    augment: add the three sentences.
    erase_scale: e; 1 in the release.
    preserve_scale: of the concepts' `preserve`, which the release has not.
    lamb: weight of the distance to the base weights.
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
  """Which of the target's rows each of the source's takes its meaning from.

  Args:
    source: token ids of the phrase, start and end included, no padding.
    target: those of what it shall mean.
    length: rows of a text state.
    preset: "fixed" or "reference".

  Raises:
    ValueError: preset is "reference" and the target lacks a token of the
      source, in the source's order.
  """
  rows, after = [], 0
  for position, token in enumerate(source):
    found = next(
      (j for j in range(after, len(target)) if target[j] == token), None
    )
    if found is None and preset == "reference":
      raise ValueError(
        f"token {position} of the phrase, id {token}, is not in what it shall "
        "mean; TIME's release needs all of them there, in order; preset "
        "'fixed' takes any"
      )
    # A token without its like takes the next one's meaning, and leaves it.
    rows.append(min(after, length - 1) if found is None else found)
    after = after if found is None else found + 1
  rows += range(after, length)
  rows = rows[:length]
  return np.array(rows + [length - 1] * (length - len(rows)))


def sentences(phrase: str) -> tuple[str, ...]:
  """The phrase alone and in TIME's three sentences."""
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

  Args:
    sd: the model.
    params: its parameters.
    concepts: what to edit, towards what.
    key: unused, TIME draws nothing.
    h: the hyperparameters.
    hooks: unused, nothing takes long.

  Raises:
    ValueError: a phrase is not usable; under "reference", an anchor lacks a
      token of its concept; the edit changes nothing.
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
  """`align` on a pair's tokens, where "an" counts as "a"."""
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
