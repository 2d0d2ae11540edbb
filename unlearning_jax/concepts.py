"""What to erase: concepts and their phrases.

A method uses the anchor and preserve list of a `Concept` as they are.
`make_concepts` fills in the published defaults.
"""

import dataclasses
import difflib
import re
import warnings
from collections.abc import Iterable, Sequence

from unlearning_jax import renamed

# The default anchors of the UCE and RECE releases. An empty anchor is the
# unconditional prompt.
DEFAULT_ANCHORS = {"object": "", "art": "art", "unsafe": ""}

TEMPLATES = {
  "object": (
    "image of {}",
    "photo of {}",
    "portrait of {}",
    "picture of {}",
    "painting of {}",
  ),
  "art": (
    "painting by {}",
    "art by {}",
    "artwork by {}",
    "picture by {}",
    "style of {}",
  ),
}

CONCEPT_SETS = {
  "nudity": ("nudity",),
  "i2p": (
    "hate", "harassment", "violence", "suffering", "humiliation", "harm",
    "suicide", "sexual", "nudity", "bodily fluids", "blood",
  ),
  "imagenette": (
    "Cassette Player", "Chain Saw", "Church", "Gas Pump", "Tench",
    "Garbage Truck", "English Springer", "Golf Ball", "Parachute",
    "French Horn",
  ),
  "artists": (
    "Kelly McKernan", "Thomas Kinkade", "Pablo Picasso", "Tyler Edlin",
    "Kilian Eng",
  ),
}  # fmt: skip


def check_choice(key: str, value: str, allowed: Iterable[str]) -> None:
  """Refuses a `value` that is not one of `allowed`, and names the nearest."""
  allowed = tuple(allowed)
  if value in allowed:
    return
  near = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.4)
  hint = f"; did you mean {near[0]!r}?" if near else ""
  if new := renamed.now(str(value), allowed):
    hint = f"; {value} is now {new}"
  raise ValueError(
    f"{key[:200]}={repr(value)[:200]} is not known; allowed: "
    f"{', '.join(allowed)}{hint}"
  )


def same_phrase(phrase: str) -> str:
  """The form in which phrases are compared: lower case, single spaces."""
  return " ".join(phrase.casefold().split())


def spellings(phrase: str) -> frozenset[str]:
  """What a phrase may be in the singular, and itself; as `same_phrase` has it.

  Two phrases that share one say the same: "Stars" and " star", "a city" and
  "a  cities".
  """
  text = same_phrase(phrase)
  found = {text}
  if text.endswith("s") and not text.endswith("ss"):
    found.add(text[:-1])
  if text.endswith("es"):
    found.add(text[:-2])
  if text.endswith("ies"):
    found.add(text[:-3] + "y")
  return frozenset(found)


def without_erased(
  phrases: Iterable[str], erased: Iterable[str]
) -> tuple[str, ...]:
  """The phrases that say something else than all that is erased."""
  gone = {spelling for phrase in erased for spelling in spellings(phrase)}
  return tuple(phrase for phrase in phrases if not spellings(phrase) & gone)


class Unsaid(tuple[str, ...]):
  """An empty list that nobody asked for: a caller may fill it."""


@dataclasses.dataclass(frozen=True)
class Concept:
  """One concept to erase.

  Attributes:
    erase: the phrase that must lose its meaning.
    anchor: what it shall mean instead; "" is the unconditional prompt.
    preserve: phrases that must keep their meaning. `()` is none; where it is
      left out, `ul.erase` supplies a list.
    task: "object", "art" or "unsafe"; decides which templates apply.
  """

  erase: str
  anchor: str = ""
  preserve: tuple[str, ...] = Unsaid()
  task: str = "object"

  def __post_init__(self):
    if isinstance(self.preserve, str):
      raise ValueError(
        f"Concept.preserve={self.preserve!r} is one string; give a sequence of "
        "phrases"
      )
    # Configs hold lists; a frozen concept must be hashable.
    if not isinstance(self.preserve, Unsaid):
      object.__setattr__(self, "preserve", tuple(self.preserve))
    for phrase in (self.erase, self.anchor, *self.preserve):
      if not isinstance(phrase, str):
        raise ValueError(f"Concept: {phrase!r} is not a string")
    if not self.erase.strip():
      raise ValueError(
        f"Concept.erase={self.erase!r} is blank: it would erase the start of "
        "every prompt"
      )
    if not all(phrase.strip() for phrase in self.preserve):
      raise ValueError(
        f"Concept {self.erase!r}: blank phrase in preserve={self.preserve!r}"
      )
    check_choice("task", self.task, DEFAULT_ANCHORS)
    if spellings(self.erase) & spellings(self.anchor):
      raise ValueError(
        f"Concept {self.erase!r} equals its anchor {self.anchor!r}: the edit "
        "would change nothing; give another anchor, '' for the empty prompt"
      )
    if any(mark in self.erase for mark in ",;"):
      warnings.warn(
        f"Concept {self.erase!r} holds a separator and is taken as one phrase; "
        "give a list to erase several",
        stacklevel=3,
      )


def make_concepts(
  erase: str | Sequence[str],
  anchor: str | Sequence[str] | None = None,
  preserve: Sequence[str] = (),
  task: str = "object",
) -> tuple[Concept, ...]:
  """Builds and checks the concepts of one edit.

  Args:
    erase: a phrase or several.
    anchor: one phrase for all concepts, one per concept, or None for the task's
      published default.
    preserve: phrases to preserve. Erased ones among them are left out, so a
      whole list of artists can be passed.
    task: "object", "art" or "unsafe".

  Raises:
    ValueError: a phrase is blank or repeated, or both erased and preserved; the
      numbers of concepts and anchors differ; the task is unknown.
  """
  check_choice("task", task, DEFAULT_ANCHORS)
  erase = (erase,) if isinstance(erase, str) else tuple(erase)
  anchor = DEFAULT_ANCHORS[task] if anchor is None else anchor
  anchors = (anchor,) if isinstance(anchor, str) else tuple(anchor)
  if len(anchors) == 1:
    anchors *= len(erase)
  if len(anchors) != len(erase):
    raise ValueError(
      f"{len(anchors)} anchors for {len(erase)} concepts; give one, or one each"
    )
  if isinstance(preserve, str):
    raise ValueError(f"preserve={preserve!r} is one string; give a sequence")
  kept = without_erased(preserve, erase)
  concepts = tuple(
    Concept(e, a, kept, task) for e, a in zip(erase, anchors, strict=True)
  )
  check_concepts(concepts)
  return concepts


def check_concepts(
  concepts: Sequence[Concept], *, allow_conflict: bool = False
) -> None:
  """Refuses concepts whose joint edit would differ from what they say.

  Args:
    allow_conflict: whether a phrase may be both erased and preserved.

  Raises:
    ValueError: there are no concepts; one occurs twice (with the same anchor it
      would count double, with two anchors the result would be their mean); a
      phrase is both erased and preserved.
  """
  if not concepts:
    raise ValueError("no concept to erase")
  anchors: dict[str, str] = {}
  for concept in concepts:
    name = same_phrase(concept.erase)
    if name in anchors:
      raise ValueError(
        f"concept {concept.erase!r} is given twice, with anchors "
        f"{anchors[name]!r} and {concept.anchor!r}"
      )
    anchors[name] = concept.anchor
  erased = {s: c.erase for c in concepts for s in spellings(c.erase)}
  for phrase in () if allow_conflict else preserved_phrases(concepts):
    for spelling in spellings(phrase) & erased.keys():
      raise ValueError(
        f"{phrase!r} is both erased and preserved: it says the same as "
        f"{erased[spelling]!r}; take it out of preserve"
      )
  for concept in concepts:
    if same_phrase(concept.anchor) in anchors:
      warnings.warn(
        f"the anchor {concept.anchor!r} of {concept.erase!r} is erased too; "
        "SalUn, EraseDiff and Concept Ablation follow what it becomes, the "
        "others what it meant in the base model",
        stacklevel=2,
      )


def naming(prompts: Iterable[str], phrases: Iterable[str]) -> dict[str, str]:
  """The prompts that name a phrase, with that phrase.

  Whole words count, in the singular or the plural, whatever stands between
  them: "two churches" and "the church's door" name "church".
  """
  said = {phrase: _words(phrase) for phrase in phrases}
  found = {}
  for prompt in prompts:
    heard = _words(prompt)
    for phrase, words in said.items():
      if words and any(
        all(map(frozenset.intersection, words, heard[i:]))
        for i in range(len(heard) - len(words) + 1)
      ):
        found.setdefault(prompt, phrase)
  return found


def _words(text: str) -> list[frozenset[str]]:
  """The spellings of each word."""
  return [spellings(word) for word in re.findall(r"\w+", text)]


def check_unnamed(concepts: Sequence[Concept]) -> None:
  """Refuses preserved phrases that name what is erased.

  Raises:
    ValueError: names the phrase and the concept.
  """
  erased = [concept.erase for concept in concepts]
  for phrase, name in naming(preserved_phrases(concepts), erased).items():
    raise ValueError(
      f"{phrase!r} is preserved, but names {name!r}, which is erased; take it "
      "out of preserve"
    )


def preserved_phrases(concepts: Iterable[Concept]) -> tuple[str, ...]:
  """The phrases that any concept preserves, each once, in order."""
  phrases: dict[str, str] = {}
  # Each list is read once: thousands of concepts may share one of thousands.
  for preserve in dict.fromkeys(concept.preserve for concept in concepts):
    for phrase in preserve:
      phrases.setdefault(same_phrase(phrase), phrase)
  return tuple(phrases.values())


def phrase_pairs(
  concepts: Iterable[Concept], *, expand: bool, template_anchors: bool
) -> tuple[tuple[str, str], ...]:
  """The (erased phrase, anchor) pairs of an edit.

  Args:
    expand: whether to add each concept in the templates of its task.
    template_anchors: whether the anchor goes into the same template (UCE 2025)
      or stays bare (UCE 2023).

  Raises:
    ValueError: `expand`, but a task has no published templates.
  """
  pairs = []
  for concept in concepts:
    pairs.append((concept.erase, concept.anchor))
    if expand and concept.task not in TEMPLATES:
      raise ValueError(
        f"expand_prompts: task {concept.task!r} of {concept.erase!r} has no "
        f"templates; tasks that have: {', '.join(TEMPLATES)}"
      )
    for template in TEMPLATES[concept.task] if expand else ():
      anchor = concept.anchor
      anchor = template.format(anchor) if template_anchors else anchor
      pairs.append((template.format(concept.erase), anchor))
  return tuple(pairs)
