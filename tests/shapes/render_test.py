"""The renderer: determinism, true masks, and things that differ."""

import dataclasses
import itertools

import numpy as np
import pytest

from unlearning_jax.shapes import dataset, render, vocabulary
from unlearning_jax.shapes.vocabulary import HEADS, Scene

RED_CIRCLE = Scene("object", "circle", "red", "grey", seed=3)


def draw(**changes):
  scene = dataclasses.replace(RED_CIRCLE, **changes)
  if scene.style in vocabulary.OWN_CANVAS:
    scene = dataclasses.replace(scene, background=None)
  return render.render(scene)


def portrait(name, **changes):
  scene = Scene("portrait", background="grey", identity=name, seed=3)
  return render.render(dataclasses.replace(scene, **changes))


def grow(mask):
  """The mask and every pixel that touches it."""
  padded = np.pad(mask, 1)
  return np.logical_or.reduce(
    [padded[i : i + 32, j : j + 32] for i in range(3) for j in range(3)]
  )


def test_a_scene_has_one_image_and_a_seed_moves_it():
  first, again, moved = draw(), draw(), draw(seed=4)
  assert first[0].dtype == np.uint8 and first[0].shape == (32, 32, 3)
  assert first[1].dtype == bool and first[1].shape == (32, 32)
  assert np.array_equal(first[0], again[0])
  assert not np.array_equal(first[1], moved[1])


@pytest.mark.parametrize(
  "name, share_of_box",
  [("circle", np.pi / 4), ("square", 1.0), ("triangle", 0.5), ("ring", 0.535)],
)
def test_mask_area_is_the_shape_s_area(name, share_of_box):
  for seed in range(5):
    mask = draw(object=name, seed=seed)[1]
    height = np.any(mask, axis=1).sum()
    width = np.any(mask, axis=0).sum()
    assert abs(mask.sum() / (height * width) - share_of_box) < 0.07


@pytest.mark.parametrize("background", HEADS["background"])
def test_pixels_off_the_mask_are_bare_background(background):
  base = vocabulary.BACKGROUNDS[background].base
  drawn = [draw(object=n, background=background) for n in HEADS["object"]]
  drawn += [portrait(n, background=background) for n in HEADS["identity"]]
  for image, mask in drawn:
    painted = np.any(image != base, axis=-1)
    # Half-covered pixels lie just outside the mask; a moon's or star's tips,
    # thinner than a pixel, reach a little further.
    assert np.sum(painted & ~grow(mask)) <= 6
    assert not np.any(painted & ~grow(grow(grow(mask))))
    assert np.all(painted[mask])


@pytest.mark.parametrize("style", HEADS["style"])
def test_the_surface_shows_its_colour(style):
  palette = np.array(list(vocabulary.COLOURS.values()), float)
  for i, colour in enumerate(vocabulary.COLOURS):
    for name in HEADS["object"]:
      image, mask = draw(object=name, colour=colour, style=style)
      shown = np.median(image[mask].astype(float), axis=0)
      # Neon and tinted styles keep the hue: compare without brightness.
      centred = palette - palette.mean(axis=1, keepdims=True)
      shown = shown - shown.mean()
      cosine = centred @ shown / np.linalg.norm(centred, axis=1)
      assert cosine[i] > 0.9 * np.linalg.norm(shown), (colour, name)


def test_every_object_stays_on_the_canvas_and_above_the_band():
  for name in HEADS["object"]:
    for seed in range(40):
      mask = draw(object=name, seed=seed)[1]
      assert 0.08 < mask.mean() < 0.55
      assert not (mask[0].any() or mask[-1].any())
      assert not (mask[:, 0].any() or mask[:, -1].any())
      banded = draw(object=name, seed=seed, hazard=True)[1]
      assert banded.mean() > 0.08 and not banded[25:].any()


def test_the_band_is_yellow_and_black_and_only_where_asked():
  for image in (
    draw(hazard=True)[0],
    portrait(HEADS["identity"][0], hazard=True)[0],
  ):
    band = image[25:].reshape(-1, 3).astype(int)
    assert (band[:, 0] - band[:, 2]).max() > 200
    assert band.max(axis=1).min() < 60
    assert len(np.unique(image[25:], axis=0)) == 7
  assert np.all(draw()[0][28:] == vocabulary.BACKGROUNDS["grey"].base)


def test_objects_differ_in_outline_wherever_they_are():
  masks = {
    name: np.stack([draw(object=name, seed=seed)[1] for seed in range(8)])
    for name in HEADS["object"]
  }
  for a, b in itertools.combinations(masks, 2):
    differing = masks[a][:, None] ^ masks[b][None]
    assert differing.sum(axis=(2, 3)).min() >= 45, (a, b)


def test_styles_and_identities_differ_in_pixels():
  styles = {name: draw(style=name)[0].astype(int) for name in HEADS["style"]}
  for a, b in itertools.combinations(styles, 2):
    assert np.abs(styles[a] - styles[b]).mean() > 10, (a, b)
  people = {name: portrait(name)[0].astype(int) for name in HEADS["identity"]}
  for a, b in itertools.combinations(people, 2):
    assert np.abs(people[a] - people[b]).mean() > 8, (a, b)


def test_any_two_identities_differ_in_two_attributes():
  assert len(vocabulary.IDENTITIES) == 20
  for a, b in itertools.combinations(vocabulary.IDENTITIES, 2):
    unequal = [x != y for x, y in zip(a.face, b.face, strict=True)]
    assert sum(unequal) >= 2, (a.name, b.name)


@pytest.mark.parametrize("field", ["object", "colour", "background", "hazard"])
def test_an_open_scene_cannot_be_drawn(field):
  with pytest.raises(ValueError, match=field):
    draw(**{field: None})


def test_scenes_refuse_what_does_not_exist():
  with pytest.raises(ValueError, match="did you mean 'circle'"):
    Scene("object", "circel", "red", "white")
  with pytest.raises(ValueError, match="no identity"):
    dataclasses.replace(RED_CIRCLE, identity=HEADS["identity"][0])
  with pytest.raises(ValueError, match="a portrait allows only 'plain'"):
    Scene("portrait", identity=HEADS["identity"][0], style="neon")


def test_the_training_distribution():
  rng = np.random.default_rng(0)
  scenes = [vocabulary.sample_scene(rng) for _ in range(6000)]

  def share(condition, among=lambda scene: True):
    return np.mean([condition(s) for s in scenes if among(s)])

  is_object = lambda s: s.kind == "object"  # noqa: E731
  implied = lambda s: s.implied  # noqa: E731
  assert abs(share(is_object) - 0.7) < 0.03
  assert abs(share(lambda s: s.style == "plain", is_object) - 0.5) < 0.03
  assert abs(share(lambda s: s.hazard and not s.implied) - 0.15) < 0.02
  assert abs(share(implied) - 0.1) < 0.02
  assert abs(share(lambda s: s.hazard, implied) - 0.6) < 0.06


def test_dataset_rows_are_reproducible_and_splits_are_disjoint():
  arrays = dataset.dataset(60, 1, "train")
  again = dataset.dataset(40, 1, "train")
  assert np.array_equal(arrays["images"][:40], again["images"])
  assert arrays["captions"][:40] == again["captions"]
  assert arrays["masks"].shape == (60, 32, 32)
  assert not np.array_equal(
    again["images"], dataset.dataset(40, 2, "train")["images"]
  )
  for head, classes in HEADS.items():
    assert arrays["labels"][head].dtype == np.int32
    assert arrays["labels"][head].min() >= -1
    assert arrays["labels"][head].max() < len(classes)
  seeds = {
    split: {row.scene.seed for row in dataset.examples(60, 1, split)}
    for split in ("train", "heldout")
  }
  assert max(seeds["train"]) < 2**30 <= min(seeds["heldout"])
  with pytest.raises(ValueError, match="n=0"):
    dataset.dataset(0, 1, "train")
  with pytest.raises(ValueError, match="did you mean 'train'"):
    dataset.dataset(1, 1, "trian")


@pytest.mark.multiprocess
def test_processes_do_not_change_the_dataset():
  one, two = (dataset.dataset(1100, 0, "train", n) for n in (1, 2))
  assert np.array_equal(one["images"], two["images"])
  assert one["captions"] == two["captions"]
