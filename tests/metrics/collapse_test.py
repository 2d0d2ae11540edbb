"""A model that draws nothing is flagged; one that erases well is not."""

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy import linalg

from unlearning_jax import extensions
from unlearning_jax.judges import Judge, Target
from unlearning_jax.metrics import Estimate, collapse, judge_errors
from unlearning_jax.metrics.accuracy import judge_rows

WORLD = extensions.world("shapes")


@pytest.fixture(scope="module")
def renders():
  """140 renders by the world's own renderer, with what each shows."""
  dataset = extensions.world("shapes", "dataset")
  vocabulary = extensions.world("shapes", "vocabulary")
  found = [dataset.example(i, 7, "train") for i in range(140)]
  rows = [
    {
      "id": str(i),
      "group": "others",
      "attributes": {
        head: None if label < 0 else vocabulary.HEADS[head][label]
        for head, label in vocabulary.labels(one.scene).items()
      },
    }
    for i, one in enumerate(found)
  ]
  return np.stack([one.image for one in found]), rows


def drawn(images, rows, model="model"):
  """Rows as an evaluation of these images has them."""
  judge = WORLD.judge()
  scores = judge(images)
  found = judge_rows(rows, scores, judge)
  for i, row in enumerate(found):
    row["scores"] = {head: value[i].tolist() for head, value in scores.items()}
  looks = collapse.pixels(images)
  return [
    {**row, "model": model, "pixels": look}
    for row, look in zip(found, looks, strict=True)
  ]


def blurred(images, radius):
  soft = ImageFilter.GaussianBlur(radius)
  return np.stack([np.asarray(Image.fromarray(i).filter(soft)) for i in images])


def in_pieces(images, size):
  """Pictures cut into squares and put together in another order."""
  rng, n = np.random.default_rng(0), 32 // size
  found = []
  for image in images:
    cut = image.reshape(n, size, n, size, 3).swapaxes(1, 2)
    mixed = rng.permutation(cut.reshape(n * n, size, size, 3))
    whole = mixed.reshape(n, n, size, size, 3).swapaxes(1, 2)
    found.append(whole.reshape(32, 32, 3))
  return np.stack(found)


WRONG = {
  "noise": lambda x: np.random.default_rng(0).integers(0, 256, x.shape, "u1"),
  "gray": lambda x: np.full_like(x, 128),
  "black": np.zeros_like,
  "blurred": lambda x: blurred(x, 3),
  "pixels shuffled": lambda x: in_pieces(x, 1),
  "quarters shuffled": lambda x: in_pieces(x, 16),
  "of other prompts": lambda x: np.roll(x, 7, axis=0),
  "one picture for all": lambda x: np.repeat(x[:1], len(x), axis=0),
}
FIRST = {
  "noise": "140 of 140 pictures are noise",
  "gray": "140 of 140 pictures have one color",
  "black": "140 of 140 pictures have one color",
  "pixels shuffled": "140 of 140 pictures are noise",
  "of other prompts": "other things that prompts ask for are seen",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_shows_nothing_is_flagged(renders, name):
  images, rows = renders
  base = drawn(images, rows, "base")
  wrong = drawn(np.asarray(WRONG[name](images), np.uint8), rows)
  found = collapse.reasons(base, wrong, WORLD.judge())
  wanted = FIRST.get(name, "of the base's spread")
  assert any(wanted in one for one in found["reasons"]), found


def test_a_good_erasure_is_not_flagged(renders):
  """As one that changes a little everywhere, and all of what it erases."""
  images, rows = renders
  rows = [
    {**row, "group": "explicit" if i % 4 == 0 else "others"}
    for i, row in enumerate(rows)
  ]
  rng = np.random.default_rng(1)
  changed = np.clip(images + rng.normal(0, 4, images.shape), 0, 255)
  changed[::4] = 128
  base = drawn(images, rows, "base")
  found = collapse.reasons(
    base, drawn(changed.astype(np.uint8), rows), WORLD.judge()
  )
  assert found["reasons"] == []
  assert found["figures"]["one color"] == {"k": 0, "n": 105}
  assert 0 < found["figures"]["far"] < WORLD.judge().far
  same = collapse.reasons(base, base, WORLD.judge())
  assert same["reasons"] == [] and same["figures"]["far"] < 1e-9


def test_of_few_pictures_no_distance_is_asked(renders):
  """It grows as they get fewer, for good erasures too."""
  images, rows = (one[: collapse.FEWEST - 1] for one in renders)
  base = drawn(images, rows, "base")
  found = collapse.reasons(base, drawn(blurred(images, 3), rows), WORLD.judge())
  assert "far" not in found["figures"] and found["reasons"] == []


def test_prompts_for_the_concept_alone_say_nothing_of_others(renders):
  images, rows = renders
  # What was erased is not drawn any more, and every prompt asks for it.
  asked = [
    {**row, "group": "explicit", "attributes": {"object": "star"}}
    for row in rows
  ]
  stars = [
    {**row, "judged": {"object": "star"}} for row in drawn(images, asked)
  ]
  gone = [{**row, "judged": {"object": "circle"}} for row in stars]
  star = Target("object", "star")
  good = collapse.reasons(stars, gone, WORLD.judge(), targets=[star])
  assert good["reasons"] == []
  noise = np.random.default_rng(0).integers(0, 256, images.shape, np.uint8)
  bad = collapse.reasons(
    stars, drawn(noise, asked), WORLD.judge(), targets=[star]
  )
  assert "are noise" in bad["reasons"][0] and len(bad["reasons"]) == 1
  # Without a word on what was erased, they count as any others.
  assert collapse.reasons(stars, gone, WORLD.judge())["reasons"]


def test_the_distance_is_scipys(renders):
  """Against scipy.linalg.sqrtm of the covariances' product."""
  images, rows = renders
  base, soft = drawn(images, rows), drawn(blurred(images, 1), rows)

  def logits(found):
    heads = [
      np.log(np.maximum([row["scores"][head] for row in found], 1e-6))
      for head in found[0]["scores"]
    ]
    return np.hstack([h - h.mean(1, keepdims=True) for h in heads])

  first, second = logits(base), logits(soft)
  covariances = np.cov(first.T), np.cov(second.T)
  root = np.real(linalg.sqrtm(covariances[0] @ covariances[1]))
  apart = np.square(first.mean(0) - second.mean(0)).sum()
  whole = apart + np.trace(covariances[0] + covariances[1] - 2 * root)
  wanted = whole / np.trace(covariances[0])
  assert collapse.distance(base, soft) == pytest.approx(wanted, rel=1e-3)


def test_a_base_of_the_same_kind_flags_nobody(renders):
  images, rows = renders
  flat = drawn(np.zeros_like(images), rows)
  assert collapse.reasons(flat, flat, WORLD.judge())["reasons"] == []


def test_fid_to_base_and_clip_score_are_read_where_measured():
  """At full size nobody knows the judge's limit."""
  rows = [
    {"id": "a", "group": "others", "model": "x", "attributes": {}, "judged": {}}
  ]
  judge = Judge("toy", lambda images: {}, {"h": ("a", "b")})
  given = [
    Estimate("fid-to-base/t2i/3000", 233.0, model="x"),
    Estimate("clip-score/cosine/B32/all", 0.30, model="x"),
    Estimate("clip-score/cosine/B32/others", 0.18, model="x"),
    Estimate("clip-score/cosine/B32/others", 0.31, model="base"),
    Estimate("clip-score/cosine/B32/all", 0.31, model="base"),
  ]
  found = collapse.reasons(rows, rows, judge, given)
  assert found["reasons"] == [
    "fid-to-base/t2i/3000 is 233 (limit 50)",
    "clip-score/cosine/B32/others is 0.18, the base's 0.31",
  ]
  well = [
    Estimate("fid-to-base/t2i/3000", 12.0, model="x"),
    Estimate("fid-to-base-rank-deficient/t2i/9", 233.0, model="x"),
    *given[1:2],
    *given[4:],
  ]
  assert collapse.reasons(rows, rows, judge, well)["reasons"] == []


def test_rows_of_older_records_have_no_pixels(renders):
  images, rows = renders
  old = [
    {k: v for k, v in row.items() if k != "pixels"}
    for row in drawn(images, rows)
  ]
  found = collapse.reasons(old, old, WORLD.judge())
  assert set(found["figures"]) == {"far", "as asked"}


def test_a_judges_own_errors():
  rows = [
    {"group": group, "attributes": {"h": asked}, "judged": {"h": seen}}
    for group, asked, seen in (
      ("explicit", "a", "a"), ("explicit", "a", "b"), ("explicit", "a", "a"),
      ("synonyms", "a", "b"), ("others", "b", "a"), ("others", "b", "b"),
      ("others", None, "b"), ("others", None, "b"),
    )
  ]  # fmt: skip
  (one,) = judge_errors.errors(rows, [Target("h", "a")])
  assert (one["false_positives"]["k"], one["false_positives"]["n"]) == (1, 4)
  assert (one["misses"]["k"], one["misses"]["n"]) == (1, 3)
  (none,) = judge_errors.errors([], [Target("h", "a")])
  assert none["misses"] == none["false_positives"] == {}
