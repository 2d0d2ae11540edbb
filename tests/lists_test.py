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


def test_captions_may_repeat(tmp_path):
  file = tmp_path / "captions.txt"
  file.write_text("a dog\nA dog\n")
  assert lists.load(file, repeats=True) == ("a dog", "A dog")


def test_some_of_a_list():
  artists = lists.load("artists_1734")
  some = lists.sample(artists, 100, seed=0)
  assert some == lists.sample(artists, 100, seed=0)
  assert len(set(some)) == 100 and set(some) < set(artists)
  assert [artists.index(a) for a in some] == sorted(map(artists.index, some))
  assert some != lists.sample(artists, 100, seed=1)
  assert lists.sample(artists, len(artists), seed=2) == artists
  for count in (0, 1_735):
    with pytest.raises(ValueError, match=f"count={count}; allowed: 1 to 1734"):
      lists.sample(artists, count, seed=0)


def test_unknown_lists(tmp_path):
  with pytest.raises(ValueError, match="did you mean 'artists_1734'"):
    lists.load("artists_1743")
  with pytest.raises(ValueError, match="no such file"):
    lists.load(tmp_path / "none.txt")
