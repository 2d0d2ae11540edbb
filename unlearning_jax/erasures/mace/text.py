"""MACE's prompts: where a phrase stands, and which tokens correspond."""

import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64

from unlearning_jax import closed_form
from unlearning_jax.concepts import Concept, same_phrase
from unlearning_jax.erasures import uce
from unlearning_jax.stable_diffusion import Params, StableDiffusion
from unlearning_jax.tokens import Tokenizer

# The concept at the start, in the middle and at the end of a sentence. The
# first of each list also draws the training images.
_THINGS = (
  "a photo of {}", "{} standing out against a plain wall",
  "{}, seen from the side", "a close-up of {}",
  "a wide shot with {} in the middle", "{} in the rain",
  "someone drew {} in pencil", "a watercolour of {} on paper",
  "two pictures of {} side by side", "{} under a bright lamp",
  "a blurred picture of {} at night", "the best picture of {} so far",
  "{} as a cartoon", "a poster with {} and a date", "in the foreground, {}",
  "{} behind a window", "an old postcard of {}",
  "a snow scene with {} and some trees", "this is {}",
  "{} on the front page of a newspaper", "a marble statue of {}",
  "a quick sketch of {} in ink", "{} in black and white",
  "a stamp that shows {}", "{} at the end of the street",
  "a grainy film still of {}", "a tidy drawing of {} by a child",
  "{} from very far away", "an early morning with {} in the garden",
  "the shadow of {}",
)  # fmt: skip
TEMPLATES = {
  "object": _THINGS,
  "art": (
    "a painting by {}", "a picture in the style of {}", "{} painted this",
    "the work of {} in a museum", "a harbour as {} would paint it",
    "a portrait by {} on canvas", "an early drawing by {}",
    "{} and a studio full of paintings", "after {}, a still life",
    "a forest in the manner of {}", "a page from a book about {}",
    "colours like those of {}", "a small print by {}",
    "{}, a retrospective", "a famous scene by {} in oil",
    "an unknown landscape by {}", "{} in the gallery",
    "a mural that {} left unfinished", "the brushwork of {}",
    "a copy after {}", "a poster for an exhibition of {}",
    "two figures by {}", "a cat by {} on a red chair",
    "the late style of {}", "a city at dusk, {}",
    "something {} might have drawn", "the signature of {} in a corner",
    "an abstract piece by {}", "a sheet of studies by {}",
    "{} once more, in blue",
  ),
  "unsafe": _THINGS,
}  # fmt: skip
TARGETS = ("phrase", "phrase+eos", "phrase+eos+pads")
# A longer phrase leaves no room for a sentence around it.
_MAX_TOKENS = 70


class Located(NamedTuple):
  """A prompt's ids without padding; the phrase is at [start, stop)."""

  ids: tuple[int, ...]
  start: int
  stop: int


def locate(tokenizer: Tokenizer, template: str, phrase: str) -> Located:
  """Puts `phrase` into `template` and finds its tokens there.

  Raises:
    ValueError: the template does not hold exactly one "{}", or the phrase has
      other tokens in the sentence than alone.
  """
  if template.count("{}") != 1:
    raise ValueError(f"template {template!r}: must hold exactly one '{{}}'")
  before, after = template.split("{}")
  whole, head, inner, tail = (
    tuple(tokenizer(text, truncation=False)["input_ids"])[1:-1]
    for text in (template.format(phrase), before, phrase, after)
  )
  if whole != head + inner + tail:
    raise ValueError(
      f"template {template!r}: {phrase!r} has other tokens in it than alone; "
      "put blanks or punctuation around '{}'"
    )
  start = 1 + len(head)
  ids = (tokenizer.bos_token_id, *whole, tokenizer.eos_token_id)
  return Located(ids, start, start + len(inner))


def common_ends(one: Sequence[int], other: Sequence[int]) -> tuple[int, int]:
  """Lengths of the longest common start, and of the rest's common end."""
  shorter = min(len(one), len(other))
  first = next((i for i in range(shorter) if one[i] != other[i]), shorter)
  last = next(
    (i for i in range(shorter - first) if one[-1 - i] != other[-1 - i]),
    shorter - first,
  )
  return first, last


def kept_tokens(
  old: Located, new: Located, length: int, *, by_ends: bool
) -> tuple[list[int], list[int]]:
  """Which positions of two padded prompts correspond, without the phrases.

  Tokens before the phrases correspond in order, then those after them, then
  padding. Both lists stop when the prompt with fewer such tokens ends.

  Args:
    old: the prompt with the concept.
    new: the same template with the anchor.
    length: l, the length of both with padding.
    by_ends: count as context whatever the prompts share at both ends, as in the
      release, even words that concept and anchor share.
  """
  first, last = old.start, len(old.ids) - old.stop
  if by_ends:
    first, last = common_ends(old.ids, new.ids)
  rows = [
    [*range(first), *range(len(prompt.ids) - last, length)]
    for prompt in (old, new)
  ]
  count = min(map(len, rows))
  return rows[0][:count], rows[1][:count]


def target_positions(
  prompt: Located, length: int, tokens: str, pads_are_eos: bool
) -> Bool[np.ndarray, " l"]:
  """S, the positions whose attention is suppressed.

  Args:
    prompt: the prompt with the concept.
    length: l, its length with padding.
    tokens: a name in `TARGETS`.
    pads_are_eos: whether padding has the id of the end of text, as in Stable
      Diffusion 1. Only then does `phrase+eos+pads` mark padding, because the
      release looks for that id.
  """
  marked = np.zeros(length, bool)
  marked[prompt.start : prompt.stop] = True
  if tokens != "phrase":
    marked[len(prompt.ids) - 1] = True
  if tokens == "phrase+eos+pads" and pads_are_eos:
    marked[len(prompt.ids) :] = True
  return marked


class Words(NamedTuple):
  """A concept's prompts, encoded for all three stages.

  Attributes:
    states: text states of the n prompts with the concept.
    anchors: text states of the same prompts with the anchor.
    phrases: which tokens of each prompt are the concept's.
    targets: S of each prompt.
    sums: sums of e^f e^f^T and (e^g - e^f) e^f^T.
    gram: G, the sum of e e^T over all tokens of the prompts with the concept.
  """

  states: Float[np.ndarray, "n l d"]
  anchors: Float[np.ndarray, "n l d"]
  phrases: Bool[np.ndarray, "n l"]
  targets: Bool[np.ndarray, "n l"]
  sums: closed_form.Sums
  gram: Float64[np.ndarray, "d d"]


def choose_templates(
  concept: Concept,
  templates: Mapping[str, Sequence[str]],
  count: int,
  rng: np.random.Generator,
) -> list[str]:
  """Draws `count` templates of the concept's task, without replacement.

  Raises:
    ValueError: the task has fewer templates.
  """
  listed = tuple(templates.get(concept.task) or ())
  if not 1 <= count <= len(listed):
    raise ValueError(
      f"num_prompts={count}; allowed: 1 to {len(listed)}, the templates of "
      f"task {concept.task!r}"
    )
  # Sorted, because the first of the list is the plainest.
  return [listed[i] for i in sorted(rng.permutation(len(listed))[:count])]


def check_phrases(tokenizer: Tokenizer, concepts: Sequence[Concept]) -> None:
  """Checks that concepts fit into sentences and differ from their anchors.

  Raises:
    ValueError: a concept has no tokens or more than 70, or its anchor contains
      it.
  """
  for concept in concepts:
    old, new = (
      tuple(tokenizer(phrase, truncation=False)["input_ids"])[1:-1]
      for phrase in (concept.erase, concept.anchor)
    )
    if not 1 <= len(old) <= _MAX_TOKENS:
      raise ValueError(
        f"concept {concept.erase!r} has {len(old)} tokens; allowed: 1 to "
        f"{_MAX_TOKENS}"
      )
    inside = any(
      new[i : i + len(old)] == old for i in range(len(new) - len(old) + 1)
    )
    if inside:
      raise ValueError(
        f"the anchor {concept.anchor!r} contains the concept "
        f"{concept.erase!r}, so nothing would be erased; choose another anchor"
      )
    shared = set(same_phrase(concept.erase).split())
    if shared & set(same_phrase(concept.anchor).split()):
      warnings.warn(
        f"concept {concept.erase!r} and anchor {concept.anchor!r} share a word",
        stacklevel=3,
      )


def encode_concept(
  sd: StableDiffusion,
  params: Params,
  concept: Concept,
  templates: Sequence[str],
  *,
  tokens: str,
  by_ends: bool,
) -> Words:
  """Encodes a concept's prompts, see `Words`.

  Args:
    params: the base.
    concept: the phrase and its anchor.
    templates: sentences with "{}".
    tokens: S, a name in `TARGETS`.
    by_ends: see `kept_tokens`.

  Raises:
    ValueError: what `locate` refuses, a prompt that is too long, or text states
      that are not finite.
  """
  length, width = sd.context_shape
  tokenizer = sd.tokenizer
  phrases = (concept.erase, concept.anchor)
  places = [[locate(tokenizer, t, p) for t in templates] for p in phrases]
  prompts = [t.format(p) for p in phrases for t in templates]
  rows = np.stack([s.rows for s in uce.encode(sd, params, prompts)])
  states, anchors = np.split(rows, 2)
  pads_are_eos = tokenizer.pad_token_id == tokenizer.eos_token_id

  def marked(which: str) -> Bool[np.ndarray, "n l"]:
    return np.stack(
      [target_positions(p, length, which, pads_are_eos) for p in places[0]]
    )

  kept = [
    kept_tokens(old, new, length, by_ends=by_ends)
    for old, new in zip(*places, strict=True)
  ]
  every = closed_form.preserve_sums(states.reshape(-1, width), 1.0)
  return Words(
    states=states,
    anchors=anchors,
    phrases=marked("phrase"),
    targets=marked(tokens),
    sums=refinement_sums(states, anchors, kept),
    gram=every.gram,
  )


def refinement_sums(
  states: Float[np.ndarray, "n l d"],
  anchors: Float[np.ndarray, "n l d"],
  kept: Sequence[tuple[Sequence[int], Sequence[int]]],
) -> closed_form.Sums:
  """Sums of e^f e^f^T and (e^g - e^f) e^f^T over corresponding tokens."""
  pairs = list(zip(states, anchors, kept, strict=True))
  source = np.concatenate([e[rows] for e, _, (rows, _) in pairs])
  target = np.concatenate([a[rows] for _, a, (_, rows) in pairs])
  return closed_form.erase_sums(source, target, 1.0)
