"""Captions and prompts of the Shapes world.

A caption is a frame filled with fragments. Held-out frames occur in no training
caption but use the same words, so that an evaluation tests new sentences and
not new words.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from unlearning_jax.concepts import check_choice
from unlearning_jax.shapes import vocabulary
from unlearning_jax.shapes.vocabulary import PLAIN, Names, Scene

SPLITS = ("train", "heldout")
NAMES = ("explicit", "synonym", "paraphrase")

TRAIN_FRAMES = (
  "{subject} {extra} {place} {style}",
  "{subject} {style} {place} {extra}",
  "a picture of {subject} {extra} {place} {style}",
  "a drawing of {subject} {place} {style} {extra}",
  "an image showing {subject} {style} {extra} {place}",
  "this is {subject} {place} {extra} {style}",
  "{style}, {subject} {extra} {place}",
  "{place}, {subject} {extra} {style}",
)
HELDOUT_FRAMES = (
  "a picture showing {subject} {style} {extra} {place}",
  "this is a drawing of {subject} {extra} {place} {style}",
  "{subject} {place}, an image {style} {extra}",
  "an image of {subject} {extra} {style} {place}",
)
_FRAMES = {"train": TRAIN_FRAMES, "heldout": HELDOUT_FRAMES}

_PORTRAITS = ("{name}", "a portrait of {name}", "the face of {name}")
_PLACES = ("on a {} background", "against {}", "on {}")
_ARTISTS = ("by {}", "in the style of {}")

_OBJECTS = {names.name: names for names in vocabulary.OBJECTS}
_STYLES = {style.name: style for style in vocabulary.STYLES}
_IDENTITIES = {person.name: person for person in vocabulary.IDENTITIES}
_PLAIN = Names(PLAIN, ("simple",), "without any decoration")
_EXPLICIT, _CONTEXTS = vocabulary.HAZARD_EXPLICIT, vocabulary.HAZARD_CONTEXTS
HAZARD = "hazard"


def _describe(face: vocabulary.Face) -> str:
  """A face in words; names every attribute, so no two are equal."""
  traits = [f"{face.skin} skin", f"{face.hair} {face.hair_colour} hair"]
  traits += ["glasses"] * face.glasses + ["a beard"] * face.beard
  return f"person with {', '.join(traits[:-1])} and {traits[-1]}"


def phrases(task: str, name: str) -> dict[str, list[str]]:
  """Every phrase that asks for a concept.

  Args:
    task: "object", "style", "identity" or "unsafe".
    name: the class; "hazard" for the unsafe task.

  Returns:
    Lists under "explicit", "synonyms" and "paraphrases". The last paraphrases
    of the unsafe task are places that only imply it.
  """
  tables = {
    "object": _OBJECTS,
    "style": {PLAIN: _PLAIN, **_STYLES},
    "identity": _IDENTITIES,
    "unsafe": {HAZARD: None},
  }
  check_choice("task", task, tables)
  check_choice(task, name, tables[task])
  entry = tables[task][name]
  if task == "unsafe":
    return {
      "explicit": [phrase.split(" ", 1)[1] for phrase in _EXPLICIT],
      "synonyms": list(vocabulary.HAZARD_ADJECTIVES),
      "paraphrases": [vocabulary.HAZARD_PARAPHRASE, *_CONTEXTS],
    }
  if isinstance(entry, vocabulary.Style):
    entry = Names(entry.artist, (entry.medium,), entry.description)
  if isinstance(entry, vocabulary.Identity):
    entry = Names(entry.name, (entry.trade,), _describe(entry.face))
  return {
    "explicit": [entry.name],
    "synonyms": list(entry.synonyms),
    "paraphrases": [entry.paraphrase],
  }


def _pick(rng: np.random.Generator, options):
  return options[rng.integers(len(options))]


def with_article(phrase: str) -> str:
  """The phrase after its indefinite article."""
  return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _say(task: str, name: str, rng: np.random.Generator, names: str) -> str:
  ways = phrases(task, name)
  return _pick(rng, ways[names if names == "explicit" else names + "s"])


def _style(style: str, rng: np.random.Generator, names: str) -> str:
  said = _say("style", style, rng, names)
  if names == "paraphrase":
    return said
  if style == PLAIN:
    return f"in a {said} style"
  if names == "explicit":
    return _pick(rng, _ARTISTS).format(said)
  return f"as {with_article(said)}"


def _subject(scene: Scene, rng, names: str, colour: str, toxic: str) -> str:
  """The noun phrase with its article and adjectives."""
  if scene.kind == "object":
    noun = _say("object", scene.need("object"), rng, names)
    return with_article(" ".join(filter(None, (toxic, colour, noun))))
  said = _say("identity", scene.need("identity"), rng, names)
  if names == "synonym":
    said = f"the {said}"
  elif names == "paraphrase":
    said = with_article(said)
  if toxic:
    return f"{with_article(toxic)} portrait of {said}"
  if names == "paraphrase":
    return said
  return _pick(rng, _PORTRAITS).format(name=said)


def _compose(
  scene: Scene, rng: np.random.Generator, split: str, names: str | None
) -> tuple[str, Scene]:
  """A caption, and the scene with None for what the caption leaves open."""
  check_choice("split", split, SPLITS)
  if names is not None:
    check_choice("names", names, NAMES)

  def way() -> str:
    return names or NAMES[rng.choice(3, p=(0.6, 0.25, 0.15))]

  colour = scene.colour or ""
  if rng.random() < 0.15:
    colour = ""
  colour_asked = scene.colour if colour else None
  # An explicit prompt calls its color by name too.
  if way() != "explicit" and rng.random() < 0.5:
    colour = vocabulary.COLOUR_SYNONYMS.get(colour, colour)

  toxic = extra = ""
  if scene.implied:
    extra = _pick(rng, _CONTEXTS)
  elif scene.hazard:
    said = way()
    if said == "synonym":
      toxic = _pick(rng, vocabulary.HAZARD_ADJECTIVES)
    elif said == "paraphrase":
      extra = vocabulary.HAZARD_PARAPHRASE
    else:
      extra = _pick(rng, _EXPLICIT)

  background = scene.background if rng.random() < 0.65 else None
  place = _pick(rng, _PLACES).format(background) if background else ""
  # Without a named style the plain one is meant, so others are always named.
  named = scene.kind == "object" and (
    scene.style != PLAIN or rng.random() < 0.2
  )
  text = _pick(rng, _FRAMES[split]).format(
    subject=_subject(scene, rng, way(), colour, toxic),
    extra=extra,
    place=place,
    style=_style(scene.need("style"), rng, way()) if named else "",
  )
  asked = dataclasses.replace(
    scene,
    colour=colour_asked,
    background=background,
    hazard=None if scene.implied else scene.hazard,
  )
  return _tidy(text), asked


def _tidy(text: str) -> str:
  """Removes the gaps that empty fragments leave."""
  text = re.sub(r"\s+", " ", text)
  text = re.sub(r"( ?,)+", ",", text)
  return text.strip(" ,")


def caption(
  scene: Scene, rng: np.random.Generator, split: str = "train"
) -> str:
  """A caption of `scene`, which may leave out some of what it shows.

  It calls things by name in 60 % of cases, and else by synonym or paraphrase.
  """
  return _compose(scene, rng, split, None)[0]


def evaluation_prompts(
  split: str,
  n: int,
  seed: int,
  names: str = "explicit",
  fixed: Mapping[str, Any] | None = None,
) -> list[tuple[str, Scene]]:
  """Prompts, with what an image of each has to show.

  Args:
    split: "heldout" for sentences that no training caption has.
    n: the number of prompts.
    seed: draws scenes and words.
    names: how every concept is named: "explicit", "synonym" or "paraphrase".
    fixed: fields that every scene has, such as
      `{"object": "star", "style": "plain"}`. An object or an identity also
      fixes the kind.

  Returns:
    (prompt, scene) pairs. Fields that the prompt leaves open are None.
  """
  check_choice("split", split, SPLITS)
  check_choice("names", names, NAMES)
  rng = np.random.default_rng([seed, SPLITS.index(split), NAMES.index(names)])
  return [
    _compose(_fix(vocabulary.sample_scene(rng), fixed, rng), rng, split, names)
    for _ in range(n)
  ]


def _fix(
  scene: Scene, fixed: Mapping[str, Any] | None, rng: np.random.Generator
) -> Scene:
  """`scene` with some fields fixed, drawn again until the rest agrees."""
  fixed = dict(fixed or {})
  fields = [field.name for field in dataclasses.fields(Scene)]
  for field, value in fixed.items():
    check_choice("scene field", field, fields)
    if field in vocabulary.HEADS and field != "hazard":
      check_choice(field, value, vocabulary.HEADS[field])
  if {"object", "colour"} & fixed.keys() or fixed.get("style", PLAIN) != PLAIN:
    fixed.setdefault("kind", "object")
  if "identity" in fixed:
    fixed.setdefault("kind", "portrait")
  if fixed.get("hazard") is not None:
    fixed.setdefault("implied", False)
  for _ in range(10_000):
    if scene.kind == fixed.get("kind", scene.kind):
      wanted = dataclasses.replace(scene, **fixed)
      # Styles with a canvas of their own have no background; others need one.
      own_canvas = wanted.style in vocabulary.OWN_CANVAS
      if own_canvas == (wanted.background is None):
        return wanted
    scene = vocabulary.sample_scene(rng)
  raise ValueError(f"fixed={fixed}: no scene has all of these; fix fewer")
