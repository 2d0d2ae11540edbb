"""The phrases, anchors and preserve lists that erase Shapes classes."""

from collections.abc import Iterator, Sequence
from typing import Any

from unlearning_jax.concepts import same_phrase
from unlearning_jax.shapes import captions, vocabulary
from unlearning_jax.shapes.captions import with_article

# Task -> the class that a config erases by default.
DEFAULTS = {
  "object": "star",
  "style": "neon",
  "identity": "Quill Estane",
  "unsafe": "hazard",
}
# Task -> the task that a `Concept` of it has.
KINDS = {
  "object": "object", "style": "art", "identity": "object", "unsafe": "unsafe",
}  # fmt: skip
# The anchor is the first of these that is not erased itself.
_ANCHORS = {
  "object": ("circle", "square"),
  "style": ("",),
  "identity": ("Adra Belvoort", "Bram Okontu", "a person"),
  "unsafe": ("",),
}
# These classes are too near to the first anchor: after UCE towards it, 25
# prompts by name still drew 20 squares and 4 crosses. With these anchors they
# draw none.
_FARTHER = {"square": "ring", "cross": "star"}
_BY = ("by {}", "in the style of {}")


def classes(task: str, name: str) -> tuple[str, ...]:
  """The classes that `name` stands for: one, several as `a+b`, `all`, ""."""
  if name == "all" and task == "identity":
    return tuple(person.name for person in vocabulary.IDENTITIES)
  return tuple((name or DEFAULTS[task]).split("+"))


def rows_per_group(names: tuple[str, ...]) -> int:
  """Prompts of each class in each group, about fifty for all classes."""
  return -(-50 // len(names))


def anchor_of(task: str, names: tuple[str, ...]) -> str:
  """The anchor of classes that are erased together; is none of them."""
  own = [_FARTHER[name] for name in names if name in _FARTHER]
  return next(a for a in (*own, *_ANCHORS[task]) if a not in names)


def preserved(task: str, names: tuple[str, ...], shape: str) -> tuple[str, ...]:
  """Phrases for every other class of the world.

  The model's text states have 128 dimensions, which leaves an edit little room
  to spare other classes without a list.
  """
  erased = explicit(task, names)
  return tuple(
    phrase
    for phrase in dict.fromkeys(_everything(task, shape))
    if not any(word in phrase for word in erased)
  )


def explicit(task: str, names: tuple[str, ...]) -> list[str]:
  """The phrases that name these classes."""
  return [p for name in names for p in captions.phrases(task, name)["explicit"]]


def concepts(task: str, names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
  """The phrases to erase: the name alone and in short sentences.

  Synonyms and paraphrases are left out, so that an evaluation can ask whether
  they are gone too.
  """
  anchor = anchor_of(task, names)
  shape = anchor if task == "object" else "circle"
  preserve = preserved(task, names, shape)
  for phrase in explicit(task, names):
    for carrier in _carriers(task):
      # An empty anchor leaves the sentence without the concept.
      target = carrier.format(anchor)
      for end in () if anchor else ("in the style of ", "by ", "with "):
        target = target.removesuffix(end)
      yield {
        "erase": carrier.format(phrase),
        "anchor": target.strip(),
        "preserve": preserve,
        "task": KINDS[task],
      }


def _carriers(task: str) -> list[str]:
  if task == "object":
    carriers = ["{}", "a {}", "a picture of a {}", "a drawing of a {}"]
    carriers += ["this is a {}"]
    carriers += [with_article(f"{c} {{}}") for c in vocabulary.COLOURS]
    carriers += [f"a {{}} by {style.artist}" for style in vocabulary.STYLES]
    return carriers + [f"a {{}} on {p}" for p in vocabulary.BACKGROUNDS]
  if task == "identity":
    return ["{}", "a portrait of {}", "the face of {}", "this is {}"]
  if task == "style":
    objects = [f"a {o}" for o in ("circle", "star", "house", "fish")]
    return [f"{o} {way}" for o in objects for way in _BY]
  carriers = [f"{o} with {{}}" for o in ("a circle", "a star", "a person")]
  return carriers + [f"{p.name} with {{}}" for p in vocabulary.IDENTITIES[:3]]


def _everything(task: str, shape: str) -> Iterator[str]:
  """Phrases for every class of the world; attributes are those of `shape`.

  Objects and styles are erased in many sentences. So that these do not erase
  other objects, every object stands in each of these sentences.
  """
  yield from (with_article(name) for name in vocabulary.HEADS["object"])
  yield from (with_article(f"{name} {shape}") for name in vocabulary.COLOURS)
  yield from (f"a {shape} on {name}" for name in vocabulary.BACKGROUNDS)
  yield from (f"by {style.artist}" for style in vocabulary.STYLES)
  yield from (person.name for person in vocabulary.IDENTITIES)
  yield from (f"a {shape} {way}" for way in vocabulary.HAZARD_EXPLICIT)
  if task in ("object", "style"):
    for name in vocabulary.HEADS["object"]:
      yield from (with_article(f"{c} {name}") for c in vocabulary.COLOURS)
      yield from (f"a {name} by {s.artist}" for s in vocabulary.STYLES)
      yield from (f"a {name} on {place}" for place in vocabulary.BACKGROUNDS)


def held_besides(phrases: Sequence[str], anchor: str) -> tuple[str, ...]:
  """Every class that none of the phrases names, for phrases of one's own."""
  known = [(task, vocabulary.HEADS[task]) for task in ("object", "identity")]
  known += [("style", vocabulary.HEADS["style"][1:]), ("unsafe", ("hazard",))]
  calls = [p for task, names in known for p in explicit(task, names)]
  texts = [same_phrase(phrase) for phrase in phrases]
  named = [
    c for c in calls if any(f" {c.casefold()} " in f" {t} " for t in texts)
  ]
  named += phrases
  shape = anchor if anchor in vocabulary.HEADS["object"] else "circle"
  return tuple(
    phrase
    for phrase in dict.fromkeys(_everything("object", shape))
    if not any(name.casefold() in phrase.casefold() for name in named)
  )


def everyday() -> tuple[str, ...]:
  """Sentences about classes of every kind, to see whether they still work."""
  things, colours = vocabulary.HEADS["object"], [*vocabulary.COLOURS]
  places = [*vocabulary.BACKGROUNDS]
  found = [
    "a picture of " + with_article(f"{colours[i % 8]} {thing}")
    for i, thing in enumerate(things)
  ]
  found += [
    f"a portrait of {person.name} on a {places[i % 4]} background"
    for i, person in enumerate(vocabulary.IDENTITIES[::2])
  ]
  found += [
    f"a {things[(5 * i + 2) % 12]} by {style.artist}"
    for i, style in enumerate(vocabulary.STYLES)
  ]
  ways = zip(("circle", "house"), vocabulary.HAZARD_EXPLICIT, strict=True)
  return (*found, *(f"a {thing} {way}" for thing, way in ways))
