"""The phrases that a probe asks for: what is erased, what is held, the rest."""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

from unlearning_jax import extensions, lists
from unlearning_jax.concepts import Concept, preserved_phrases, same_phrase
from unlearning_jax.sampling import Sampling
from unlearning_jax.stable_diffusion import StableDiffusion

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Asked:
  """Phrases to ask an edited model for.

  Attributes:
    pairs: (erased, anchor), each in the same sentence; without an anchor, the
      sentence without the phrase.
    preserved: some of the preserved phrases.
    unrelated: everyday phrases that do not name the concept.
  """

  pairs: tuple[tuple[str, str], ...]
  preserved: tuple[str, ...]
  unrelated: tuple[str, ...]


def spread(items: Sequence[T], count: int) -> tuple[T, ...]:
  """At most `count` of the items, evenly spread, the ends among them."""
  if len(items) <= count:
    return tuple(items)
  last = len(items) - 1
  return tuple(items[round(i * last / (count - 1))] for i in range(count))


def ask(
  sd: StableDiffusion,
  concepts: Sequence[Concept],
  source: str,
  *,
  most: tuple[int, int, int],
  sentences: Sequence[str],
) -> Asked:
  """What to ask after concepts were erased.

  A concept is asked for in sentences, as prompts do. A closed form is solved at
  the bare phrase, which reads as gone where prompts still show it.

  Args:
    sd: the model; phrases that are too long for it are left out.
    concepts: what was erased.
    source: of the model; an embedded world has everyday phrases of its own.
    most: concepts, preserved phrases and unrelated phrases at most.
    sentences: with a place for the concept.
  """
  pairs = [
    (
      sentence.format(one.erase),
      " ".join(sentence.format(one.anchor).split()),
    )
    for one in spread(concepts, most[0])
    for sentence in sentences
  ]
  held = preserved_phrases(concepts)
  own = {word for one in concepts for word in _words(one.erase)}
  for one in concepts:
    own -= _words(one.anchor)
  for phrase in held:
    own -= _words(phrase)
  others = [p for p in everyday(source) if not own & _words(p)]
  ends = [end for pair in pairs for end in pair]
  fits = _fitting(sd, [*ends, *held, *others])
  return Asked(
    tuple(pair for pair in pairs if fits >= set(pair)),
    spread([p for p in held if p in fits], most[1]),
    spread([p for p in others if p in fits], most[2]),
  )


def everyday(source: str) -> tuple[str, ...]:
  """Phrases that a model of this source should always understand."""
  if source in extensions.worlds():
    return extensions.world(source).everyday()
  return lists.load("unrelated")


def usual(source: str) -> Sampling:
  """How a model of this source is usually drawn."""
  if source in extensions.worlds():
    return extensions.world(source).SAMPLING
  return Sampling()


def _words(phrase: str) -> set[str]:
  return set(same_phrase(phrase).replace(",", " ").split())


def _fitting(sd: StableDiffusion, phrases: Sequence[str]) -> set[str]:
  rows = sd.tokenizer(list(phrases), truncation=False)["input_ids"]
  length = sd.context_shape[0]
  return {p for p, row in zip(phrases, rows, strict=True) if len(row) <= length}
