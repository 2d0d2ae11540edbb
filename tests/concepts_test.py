"""Concepts and their published phrases."""

import pytest

from unlearning_jax import concepts
from unlearning_jax.concepts import Concept, make_concepts
from unlearning_jax.tokens import check_tokens


class Tokenizer:
  """A token a word, whatever its case; start and end added."""

  model_max_length = 8

  def __call__(self, texts, **kwargs):
    return {"input_ids": [[1, *map(hash, t.lower().split()), 2] for t in texts]}


def test_a_concept_is_explicit_and_hashable():
  star = Concept("star", "circle", ["moon", "ring"])
  assert star.preserve == ("moon", "ring")
  assert hash(star) == hash(Concept("star", "circle", ("moon", "ring")))
  assert Concept("star").anchor == ""


@pytest.mark.parametrize(
  "kwargs, message",
  [
    ({"erase": ""}, "erase='' is blank"),
    ({"erase": " \t"}, "blank"),
    ({"erase": 3}, "3 is not a string"),
    ({"erase": "star", "anchor": None}, "None is not a string"),
    ({"erase": "star", "preserve": ("moon", " ")}, "blank phrase in preserve"),
    ({"erase": "star", "preserve": "moon"}, "'moon' is one string"),
    ({"erase": "star", "task": "objects"}, "did you mean 'object'"),
    ({"erase": "Van Gogh", "anchor": " van  gogh"}, "equals its anchor"),
  ],
)
def test_refuses_a_concept(kwargs, message):
  with pytest.raises(ValueError, match=message):
    Concept(**kwargs)


def test_warns_of_a_list_in_one_phrase():
  with pytest.warns(UserWarning, match="'star, moon' holds a separator"):
    Concept("star, moon")


def test_published_anchors():
  assert make_concepts("star")[0].anchor == ""
  assert make_concepts("nudity", task="unsafe")[0].anchor == ""
  assert make_concepts("Van Gogh", task="art")[0].anchor == "art"
  assert make_concepts("Van Gogh", "", task="art")[0].anchor == ""


def test_anchors_are_broadcast_or_one_each():
  assert [c.anchor for c in make_concepts(["a", "b"], "c")] == ["c", "c"]
  assert [c.anchor for c in make_concepts(["a", "b"], ["c", "d"])] == ["c", "d"]
  with pytest.raises(ValueError, match="2 anchors for 3 concepts"):
    make_concepts(["a", "b", "c"], ["d", "e"])


def test_preserve_list_may_hold_what_is_erased():
  (one,) = make_concepts("Van Gogh", preserve=["Monet", "VAN  Gogh", "Picasso"])
  assert one.preserve == ("Monet", "Picasso")


@pytest.mark.parametrize(
  "given, message",
  [
    ([], "no concept"),
    ([Concept("star"), Concept(" STAR ")], "twice.*'' and ''"),
    ([Concept("star", "a"), Concept("star", "b")], "twice.*'a' and 'b'"),
    ([Concept("star"), Concept("moon", preserve=("Star",))], "both erased and"),
  ],
)
def test_refuses_concepts_that_contradict(given, message):
  with pytest.raises(ValueError, match=message):
    concepts.check_concepts(given)


def test_warns_of_an_anchor_that_is_erased():
  with pytest.warns(UserWarning, match="'moon' of 'star' is erased too"):
    concepts.check_concepts([Concept("star", "moon"), Concept("moon", "ring")])


@pytest.mark.parametrize(
  "given, message",
  [
    ([Concept("\u200b ")], "no tokens"),
    ([Concept("star"), Concept("st\u200bar")], "have the same tokens"),
    ([Concept("star", "sta\u200br")], "its anchor have the same tokens"),
    ([Concept("star", preserve=("s\u200btar",))], "is preserved, but"),
  ],
)
def test_refuses_phrases_that_only_look_different(given, message):
  class Blind(Tokenizer):
    def __call__(self, texts, **kwargs):
      return super().__call__([t.replace("\u200b", "") for t in texts])

  with pytest.raises(ValueError, match=message):
    check_tokens(Blind(), given)


def test_tokens_of_usual_concepts_pass():
  check_tokens(Tokenizer(), make_concepts(["a", "b"], "c", ["d", "e"]))


def test_templates():
  (art,) = make_concepts("Monet", task="art")

  def pairs(concept, anchors):
    return concepts.phrase_pairs(
      [concept], expand=True, template_anchors=anchors
    )

  # UCE 2023 templates the concept only, UCE 2025 both.
  assert pairs(art, False) == (
    ("Monet", "art"),
    ("painting by Monet", "art"),
    ("art by Monet", "art"),
    ("artwork by Monet", "art"),
    ("picture by Monet", "art"),
    ("style of Monet", "art"),
  )
  assert pairs(art, True)[1] == ("painting by Monet", "painting by art")
  assert [erase for erase, _ in pairs(Concept("dog"), False)] == [
    "dog",
    "image of dog",
    "photo of dog",
    "portrait of dog",
    "picture of dog",
    "painting of dog",
  ]
  with pytest.raises(ValueError, match="'unsafe' of 'blood' has no templates"):
    pairs(Concept("blood", task="unsafe"), False)
  plain = concepts.phrase_pairs([art], expand=False, template_anchors=True)
  assert plain == (("Monet", "art"),)


def test_braces_in_a_phrase_are_text():
  pairs = concepts.phrase_pairs(
    [Concept("{0} dog")], expand=True, template_anchors=True
  )
  assert pairs[1][0] == "image of {0} dog"


def test_concept_sets_make_concepts():
  sizes = {"nudity": 1, "i2p": 11, "imagenette": 10, "artists": 5}
  assert {k: len(v) for k, v in concepts.CONCEPT_SETS.items()} == sizes
  for phrases in concepts.CONCEPT_SETS.values():
    make_concepts(phrases)


@pytest.mark.parametrize(
  "prompt, phrase",
  [
    ("a church, at night", "church"),
    ("two churches", "church"),
    ("the Church's door", "church"),
    ("Van-Gogh's sun", "van gogh"),
    ("a star", "stars"),
    ("research", None),
    ("a van of gogh", None),
  ],
)
def test_which_prompts_name_a_phrase(prompt, phrase):
  found = concepts.naming([prompt], ["...", "church", "van gogh", "stars"])
  assert found == ({prompt: phrase} if phrase else {})
