"""Published lists of phrases, and one's own."""

import pytest

from unlearning_jax import concepts, lists


def test_the_artists_of_the_art_runs():
  artists = lists.load("artists_1734")
  assert len(artists) == len(set(artists)) == 1734
  assert artists[0] == "A.J.Casson" and "Émile Bernard" in artists
  # What the runs erase is on the list of what they preserve.
  five = concepts.make_concepts(lists.load("artists"), preserve=artists)
  assert len(five[0].preserve) == 1734 - 5


def test_every_set_has_a_name():
  assert set(concepts.CONCEPT_SETS) < set(lists.names())
  for name in lists.names():
    assert lists.load(name)
  assert len(lists.load("i2p")) == 11 and len(lists.load("imagenette")) == 10


def test_ones_own_list(tmp_path):
  path = tmp_path / "mine.txt"
  path.write_text("# these\n\n a cat \nÉmile\n", encoding="utf-8")
  assert lists.load(path) == lists.load(str(path)) == ("a cat", "Émile")


@pytest.mark.parametrize(
  "content, message",
  [
    (b"# none\n", "holds no phrase"),
    (b"A cat\nb\na  CAT\n", "'a  CAT' is there twice"),
    (b"\xff\xfe", "no text in UTF-8"),
  ],
)
def test_files_that_are_no_list(tmp_path, content, message):
  path = tmp_path / "mine.txt"
  path.write_bytes(content)
  with pytest.raises(ValueError, match=message):
    lists.load(path)


def test_unknown_lists(tmp_path):
  with pytest.raises(ValueError, match="did you mean 'artists_1734'"):
    lists.load("artists_1743")
  with pytest.raises(ValueError, match="No such file"):
    lists.load(tmp_path / "none.txt")
