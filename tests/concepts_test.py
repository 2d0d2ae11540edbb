"""Concepts, their published phrases, and prompt tables."""

import pytest

from unlearning_jax import concepts
from unlearning_jax.concepts import Concept, make_concepts, read_prompts
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


# Prompt tables.

HEADER = "case_number,prompt,evaluation_seed,evaluation_guidance"


def table(tmp_path, *rows, header=HEADER):
  path = tmp_path / "prompts.csv"
  path.write_text("\n".join((header, *rows)), encoding="utf-8")
  return path


def test_reads_a_table(tmp_path):
  path = table(
    tmp_path,
    '7,"a dog, ""big""\nand red",4294967295,7.5,dog',
    "0,a cat,0,10,cat",
    header="\ufeff" + HEADER + ",class",
  )
  first, second = read_prompts(path)
  assert (first.case_number, first.seed) == (7, 2**32 - 1)
  assert first.prompt == 'a dog, "big"\nand red'
  assert (first.guidance, second.guidance) == (7.5, 10.0)
  assert first.labels == {"class": "dog"}


def test_guidance_is_optional(tmp_path):
  path = table(tmp_path, "1,a,2", header=HEADER.rsplit(",", 1)[0])
  (row,) = read_prompts(path)
  assert (row.guidance, row.labels) == (None, {})


@pytest.mark.parametrize(
  "rows, message",
  [
    (["1,a,-1,7"], "row 1: evaluation_seed='-1'"),
    (["1,a,1234.0,7"], "row 1: evaluation_seed='1234.0'"),
    (["1,a,4294967296,7"], "evaluation_seed='4294967296'.*4294967295"),
    (["1,a,1e3,7"], "evaluation_seed='1e3'"),
    (["1,a,,7"], "evaluation_seed=''"),
    (["1,a,٣,7"], "evaluation_seed="),
    (["1.0,a,1,7"], "case_number='1.0'"),
    (["1,a,1,7", "2,b,1,7", "1,c,1,7"], "row 3: case_number=1 is repeated"),
    (["1,,1,7"], "row 1: prompt='' is empty"),
    (["1,NaN,1,7"], "prompt='NaN' is empty"),
    (["1,a,1,nan"], "evaluation_guidance='nan' is not finite"),
    (["1,a,1,"], "evaluation_guidance='' is not a number"),
    (["1,a,1"], "row 1: more or fewer fields"),
    (["1,a,b,1,7"], "row 1: more or fewer fields"),
    ([], "no prompts"),
    (['1,"a,1,7'], "no CSV"),
  ],
)
def test_refuses_a_table(tmp_path, rows, message):
  path = table(tmp_path, *rows)
  with pytest.raises(ValueError, match=message) as error:
    read_prompts(path)
  assert str(path) in str(error.value)


@pytest.mark.parametrize(
  "header, message",
  [
    ("case_number,prompt", "no column 'evaluation_seed'"),
    ("", "no column 'case_number'; found: none"),
    (HEADER + ",prompt", "repeated"),
  ],
)
def test_refuses_columns(tmp_path, header, message):
  with pytest.raises(ValueError, match=message):
    read_prompts(table(tmp_path, "1,a,1,7,b", header=header))


def test_refuses_a_table_in_another_encoding(tmp_path):
  path = table(tmp_path)
  path.write_bytes(HEADER.encode() + b"\n1,caf\xe9,1,7\n")
  with pytest.raises(ValueError, match="UTF-8"):
    read_prompts(path)
