"""MACE's settings concept by concept, and what is refused before any work."""

import jax
import numpy as np
import pytest
from PIL import Image

from tests.support import mace_cases
from unlearning_jax.concepts import Concept
from unlearning_jax.erasures import mace
from unlearning_jax.erasures.mace import stages

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


def test_each_kind_is_trained_by_its_own_recipe():
  training = mace.Hparams(recipe={"ann  bee": "identity"})
  training.check(MIXED)
  found = [training.recipe_of(concept) for concept in MIXED]
  assert [r.learning_rate for r in found] == [1e-5, 1e-4, 1e-4, 1e-5]
  assert [r.num_steps for r in found] == [50, 50, 50, 120]
  assert [r.focal for r in found] == [True, True, True, False]
  # Pairs too, for phrases that no config's dictionary can have as keys.
  pairs = mace.Hparams(recipe=(("Ann Bee", "identity"),))
  assert [pairs.recipe_of(concept) for concept in MIXED] == found
  by_task = mace.Hparams()
  assert by_task.recipe_of(MIXED[1]) == found[0]
  for_all = mace.Hparams(recipe="identity")
  assert {for_all.recipe_of(concept) for concept in MIXED} == {found[1]}


def test_recipes_that_cannot_be(model, unencoded):
  with pytest.raises(ValueError, match="recipe of 'ann'='identitty'.*'identi"):
    mace.Hparams(recipe={"Ann": "identitty"})
  with pytest.raises(ValueError, match="recipe of concept='ann be'.*'ann bee'"):
    mace.erase(
      *model,
      MIXED,
      jax.random.key(0),
      mace.Hparams(recipe={"Ann Be": "identity"}),
    )


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
    ("few", r"masks of 'few': shape \(2, 16, 16\); allowed: \(3, 16, 16\)"),
    ("none", "no masks of 'none'"),
    ("small", r"images of 'small': uint8 \(3, 8, 8, 3\); allowed: uint8"),
  ):
    with pytest.raises(ValueError, match=message):
      mace.erase(
        *model,
        (Concept("xyz", "moon"), Concept(name, "b")),
        jax.random.key(0),
        mace.Hparams(data=str(tmp_path), mask_source="png"),
      )
  given = {"xyz": (images, np.zeros_like(masks))}
  for changes, message in (
    ({"examples": given}, "masks of 'xyz': the mask of image 0 is empty"),
    ({"captions": "no/file.txt"}, "captions='no/file.txt': no such file"),
  ):
    with pytest.raises(ValueError, match=message):
      mace.erase(
        *model,
        MIXED[:1],
        jax.random.key(0),
        mace.Hparams(
          mask_source="analytic",
          **{"examples": {"xyz": (images, masks)}, **changes},
        ),
      )
  with pytest.raises(ZeroDivisionError):
    mace.erase(
      *model,
      MIXED[:1],
      jax.random.key(0),
      mace.Hparams(data=str(tmp_path), mask_source="png"),
    )
