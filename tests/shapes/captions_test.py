"""Captions: words, templates, and what an evaluation prompt asks for."""

import itertools
import re

import numpy as np
import pytest

from unlearning_jax.shapes import captions, vocabulary
from unlearning_jax.shapes.vocabulary import HEADS

# Words that carry no concept.
_GLUE = set("a an the of and with by in on at that without any to".split())


def words(text):
  return set(re.findall(r"[a-z]+", text.lower()))


def sample(split, n, seed=0):
  rng = np.random.default_rng(seed)
  return [
    captions.caption(vocabulary.sample_scene(rng), rng, split) for _ in range(n)
  ]


@pytest.fixture(scope="module")
def train():
  return sample("train", 20_000)


@pytest.fixture(scope="module")
def heldout():
  return sample("heldout", 5_000, seed=1)


def test_a_caption_follows_from_its_generator():
  assert sample("train", 20) == sample("train", 20)
  assert sample("train", 20) != sample("train", 20, seed=2)


def test_heldout_sentences_are_new_but_their_words_are_not(train, heldout):
  assert not set(captions.TRAIN_FRAMES) & set(captions.HELDOUT_FRAMES)
  assert not set(train) & set(heldout)
  known = set().union(*map(words, train))
  assert set().union(*map(words, heldout)) <= known


def test_captions_are_tidy(train, heldout):
  for text in train + heldout:
    assert text == text.strip(" ,"), text
    assert not re.search(r"  | ,|,,|,\S|\{|\}|None", text), text
    assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text), text


def concepts():
  for task, head in (
    ("object", "object"),
    ("style", "style"),
    ("identity", "identity"),
  ):
    for name in HEADS[head]:
      yield task, name
  yield "unsafe", "hazard"


@pytest.mark.parametrize("task, name", list(concepts()))
def test_every_phrase_of_a_concept_occurs_and_shares_no_name(task, name, train):
  ways = captions.phrases(task, name)
  assert sorted(ways) == ["explicit", "paraphrases", "synonyms"]
  assert all(ways.values())
  text = "\n".join(train)
  named = set().union(*map(words, ways["explicit"]))
  for kind in ("synonyms", "paraphrases"):
    for phrase in ways[kind]:
      assert phrase in text
      assert not words(phrase) & named, phrase
  assert ways["explicit"][0] in text


def test_objects_have_two_synonyms_and_no_word_in_common():
  said = {
    names.name: words(" ".join([names.name, *names.synonyms]))
    for names in vocabulary.OBJECTS
  }
  assert len(said) == 12
  assert all(len(names.synonyms) == 2 for names in vocabulary.OBJECTS)
  # "shape", "sided" and the like may recur; an object's name may not.
  for a, b in itertools.permutations(said, 2):
    assert a not in said[b] and not (said[a] - {"sided"}) & (
      said[b] - {"sided"}
    ), (a, b)
  paraphrases = {
    name: words(captions.phrases("object", name)["paraphrases"][0]) - _GLUE
    for name in said
  }
  for a, b in itertools.permutations(said, 2):
    assert a not in paraphrases[b]
    assert not paraphrases[a] <= paraphrases[b], (a, b)


def test_descriptions_of_identities_are_unique():
  said = [
    captions.phrases("identity", name)["paraphrases"][0]
    for name in HEADS["identity"]
  ]
  assert len(set(said)) == len(said) == 20


def test_labels_index_the_heads():
  scene = vocabulary.Scene("object", "star", "blue", None, "neon", hazard=True)
  assert vocabulary.labels(scene) == {
    "object": 3,
    "colour": 5,
    "background": -1,
    "style": 5,
    "identity": -1,
    "hazard": 1,
    "kind": 0,
  }


@pytest.mark.parametrize("names", captions.NAMES)
def test_prompts_ask_for_what_their_scene_says(names):
  key = names if names == "explicit" else names + "s"
  asked = captions.evaluation_prompts("heldout", 400, 0, names)
  assert asked == captions.evaluation_prompts("heldout", 400, 0, names)
  assert len({text for text, _ in asked}) > 300
  for text, scene in asked:
    task = "object" if scene.kind == "object" else "identity"
    ways = captions.phrases(task, getattr(scene, task))[key]
    assert any(way in text for way in ways), (text, scene)
    if scene.background is not None:
      assert scene.background in text
    else:
      assert not words(text) & (set(HEADS["background"]))
    if scene.colour is not None:
      said = vocabulary.COLOUR_SYNONYMS.get(scene.colour, scene.colour)
      assert words(text) & {scene.colour, said}, (text, scene)
    if scene.style != "plain":
      ways = captions.phrases("style", scene.style)[key]
      assert any(way in text for way in ways), (text, scene)
    hints = captions.phrases("unsafe", "hazard")
    hints = hints["explicit"] + hints["synonyms"] + hints["paraphrases"]
    hinted = any(hint in text for hint in hints)
    assert hinted == (scene.hazard is not False), (text, scene)


def test_prompts_can_be_pinned_to_a_concept():
  pinned = captions.evaluation_prompts(
    "heldout", 50, 0, fixed={"object": "star", "style": "neon"}
  )
  for text, scene in pinned:
    assert (scene.object, scene.style, scene.background) == (
      "star",
      "neon",
      None,
    )
    assert " star" in text and "Juno Zaretti" in text
  person = HEADS["identity"][7]
  for text, scene in captions.evaluation_prompts(
    "train", 20, 0, fixed={"identity": person, "hazard": False}
  ):
    assert person in text
    assert scene.hazard is False and scene.kind == "portrait"


def test_unknown_words_are_refused_with_the_nearest():
  with pytest.raises(ValueError, match="did you mean 'heldout'"):
    captions.evaluation_prompts("held-out", 1, 0)
  with pytest.raises(ValueError, match="did you mean 'star'"):
    captions.evaluation_prompts("train", 1, 0, fixed={"object": "sta"})
  with pytest.raises(ValueError, match="scene field"):
    captions.evaluation_prompts("train", 1, 0, fixed={"size": 3})
  with pytest.raises(ValueError, match="did you mean 'object'"):
    captions.phrases("objects", "star")
  with pytest.raises(ValueError, match="did you mean 'neon'"):
    captions.phrases("style", "neno")
