"""MACE's settings concept by concept, and what is refused before any work."""

import inspect

import jax
import numpy as np
import pytest
from PIL import Image

from tests.support import mace_cases
from unlearning_jax.concepts import Concept
from unlearning_jax.erasures import mace
from unlearning_jax.erasures.mace import options, stages

# One of each kind; to `Concept` people are objects.
MIXED = (
  Concept("xyz", "moon"),
  Concept("Ann Bee", "a person"),
  Concept("pqr", "art", (), "art"),
  Concept("fish", "b", (), "unsafe"),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return mace_cases.world(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def unencoded(monkeypatch):
  """Fails where a phrase is encoded."""
  monkeypatch.setattr(stages, "speak", lambda *_: 1 / 0)


def collected(**hparams):
  defaults = inspect.signature(mace.erase).parameters.items()
  defaults = {name: parameter.default for name, parameter in defaults}
  return options.collect({**defaults, **hparams})


def test_each_kind_is_trained_by_its_own_recipe():
  training = collected(recipe={"ann  bee": "identity"}).training
  training.check(MIXED)
  found = [training.of(concept) for concept in MIXED]
  assert [r.learning_rate for r in found] == [1e-5, 1e-4, 1e-4, 1e-5]
  assert [r.num_steps for r in found] == [50, 50, 50, 120]
  assert [r.focal for r in found] == [True, True, True, False]
  # Pairs too, for phrases that no config's dictionary can have as keys.
  pairs = collected(recipe=(("Ann Bee", "identity"),)).training
  assert [pairs.of(concept) for concept in MIXED] == found
  by_task = collected().training
  assert by_task.of(MIXED[1]) == found[0]
  for_all = collected(recipe="identity").training
  assert {for_all.of(concept) for concept in MIXED} == {found[1]}


def test_recipes_that_cannot_be(model, unencoded):
  with pytest.raises(ValueError, match="recipe of 'ann'='identitty'.*'identi"):
    collected(recipe={"Ann": "identitty"})
  with pytest.raises(ValueError, match="recipe of concept='ann be'.*'ann bee'"):
    mace.erase(*model, MIXED, jax.random.key(0), recipe={"Ann Be": "identity"})


def write(folder, name, images, masks=()):
  (folder / name / "masks").mkdir(parents=True)
  for i, pixels in enumerate(images):
    Image.fromarray(pixels).save(folder / name / f"{i}.png")
  for i, pixels in enumerate(masks):
    Image.fromarray(255 * pixels).save(folder / name / "masks" / f"{i}.png")


def test_files_are_checked_before_anything_is_encoded(
  model, tmp_path, unencoded
):
  images, masks = mace_cases.images(), mace_cases.masks()
  write(tmp_path, "xyz", images, masks)
  write(tmp_path, "few", images, masks[1:])
  write(tmp_path, "none", images)
  write(tmp_path, "small", images[:, :8, :8], masks)
  for name, message in (
    ("fish", "no images of 'fish' in"),
    ("few", r"masks of 'few': shape \(2, 16, 16\); want \(3, 16, 16\)"),
    ("none", "no masks of 'none'"),
    ("small", r"images of 'small': uint8 \(3, 8, 8, 3\); want uint8"),
  ):
    with pytest.raises(ValueError, match=message):
      mace.erase(
        *model,
        (Concept("xyz", "moon"), Concept(name, "b")),
        jax.random.key(0),
        data=str(tmp_path),
        mask_source="png",
      )
  given = {"xyz": (images, np.zeros_like(masks))}
  for changes, message in (
    ({"examples": given}, "masks of 'xyz': image 0 has an empty one"),
    ({"captions": "no/file.txt"}, "captions='no/file.txt': no such file"),
  ):
    with pytest.raises(ValueError, match=message):
      mace.erase(
        *model, MIXED[:1], jax.random.key(0), mask_source="analytic",
        **{"examples": {"xyz": (images, masks)}, **changes},
      )  # fmt: skip
  with pytest.raises(ZeroDivisionError):
    mace.erase(
      *model, MIXED[:1], jax.random.key(0), data=str(tmp_path),
      mask_source="png",
    )  # fmt: skip
