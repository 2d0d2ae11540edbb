"""MACE from end to end: what it changes, records, reads and refuses."""

import warnings

import jax
import numpy as np
import pytest
from PIL import Image

from tests.support import closed_form_cases as cases
from tests.support import mace_cases
from unlearning_jax import models
from unlearning_jax.concepts import Concept
from unlearning_jax.edits import apply_to_params
from unlearning_jax.erasures import Hooks, mace
from unlearning_jax.erasures.mace import images as image
from unlearning_jax.metrics.harmonic import harmonic
from unlearning_jax.projections import cross_attention_kernels

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quickest_compiler")]

CONCEPTS = (Concept("xyz", "moon", ("dog",)), Concept("fish", "b", ("dog",)))
SMALL = {
  "templates": mace_cases.TEMPLATES,
  "num_prompts": 3,
  "num_steps": 3,
  "learning_rate": 1e-2,
  "mask_source": "analytic",
  "examples": {
    "xyz": (mace_cases.images(), mace_cases.masks()),
    "fish": (mace_cases.images(seed=1), mace_cases.masks()),
  },
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return mace_cases.world(tmp_path_factory.mktemp("tiny"))


def erase(model, concepts=CONCEPTS, **changes):
  """The edit and the statistics."""
  states = []
  key = jax.random.key(0)
  h, hooks = mace.Hparams(**SMALL | changes), Hooks(keep=states.append)
  return mace.erase(*model, concepts, key, h, hooks), states[0]


@pytest.fixture(scope="module")
def both(model):
  return erase(model)


def test_every_concept_has_an_adapter_of_its_own(model, both):
  _, together = both
  for concept, part in zip(CONCEPTS, together.parts, strict=True):
    assert part.name == concept.erase
    assert set(part.adapters) == set(cross_attention_kernels(model[1]))
    assert mace_cases.untrained(part.adapters) == mace_cases.LAST


def test_edits_text_projections_and_says_what_it_did(model, both):
  edit, state = both
  kernels = cross_attention_kernels(model[1])
  assert set(edit.leaves) == {f"unet/{path}" for path in kernels}
  assert edit.method == "mace fixed" and edit.concepts == CONCEPTS
  found = edit.diagnostics
  assert found["fusion"]["solve_error"] < 1e-10
  assert found["concepts"]["xyz"]["mask_source"] == "analytic"
  assert found["concepts"]["xyz"]["full_instead"] == []
  again, _ = state.solve(model[1])
  edited = apply_to_params(edit, model[1])
  jax.tree.map(np.testing.assert_array_equal, edited, again)


def test_the_same_key_gives_the_same_edit(model, both):
  for path, leaf in erase(model)[0].leaves.items():
    np.testing.assert_array_equal(leaf, both[0].leaves[path])


def test_dropping_a_concept_leaves_the_others_adapter(model, both):
  """Alone, it is fused as the textbook says of one concept."""
  state, (part, _) = both[1].drop("fish"), both[1].parts
  assert state.parts == (part,)
  base, alone, with_both = (
    cross_attention_kernels(p)
    for p in (model[1], *(s.solve(model[1])[0] for s in (state, both[1])))
  )
  ridge = state.lamb * np.eye(cases.WIDTH)
  first = part.sums.gram + state.refine_scale * state.prior + ridge
  prior = state.fuse_scale * state.prior
  for path, kernel in base.items():
    kernel, factors = np.float64(kernel), part.adapters[path]
    refined = kernel + np.linalg.solve(first, part.sums.cross.T @ kernel)
    target = refined + np.float64(factors["down"]) @ factors["up"]
    fused = np.linalg.solve(
      part.gram + prior + ridge,
      part.gram @ target + prior @ kernel + ridge @ refined,
    )
    assert cases.relative(alone[path] - kernel, fused - kernel) < 1e-4
    assert cases.relative(with_both[path] - kernel, fused - kernel) > 1e-2


def test_tasks_are_mixed_and_a_style_has_no_mask(model):
  concepts = (CONCEPTS[0], Concept("pqr", "art", ("dog",), "art"))
  examples = {**SMALL["examples"], "pqr": (mace_cases.images(seed=2), None)}
  edit, _ = erase(model, concepts, examples=examples, preset="reference")
  found = edit.diagnostics["concepts"]
  assert found["pqr"]["mask_source"] == "full"
  assert found["pqr"]["mask_area"] == 1.0 > found["xyz"]["mask_area"]


def test_a_mask_without_a_place_is_replaced_and_recorded(model):
  everywhere = np.ones((3, 16, 16), np.uint8)
  examples = {"xyz": (mace_cases.images(), everywhere)}
  with pytest.warns(
    UserWarning, match=r"'xyz': analytic masks of .*\[0, 1, 2\]"
  ):
    edit, _ = erase(model, CONCEPTS[:1], examples=examples)
  assert edit.diagnostics["concepts"]["xyz"]["full_instead"] == [0, 1, 2]


def test_images_and_masks_from_a_folder(model, tmp_path):
  (tmp_path / "xyz" / "masks").mkdir(parents=True)
  for i, (pixels, found) in enumerate(
    zip(mace_cases.images(), mace_cases.masks(), strict=True)
  ):
    Image.fromarray(pixels).save(tmp_path / "xyz" / f"{i}.png")
    Image.fromarray(255 * found).save(tmp_path / "xyz" / "masks" / f"{i}.png")
  options = {"data": str(tmp_path), "examples": None}
  read, _ = erase(model, CONCEPTS[:1], mask_source="png", **options)
  given, _ = erase(model, CONCEPTS[:1])
  for path, leaf in given.leaves.items():
    np.testing.assert_array_equal(read.leaves[path], leaf)
  with pytest.raises(ValueError, match="no images of 'fish' in .*fish"):
    erase(model, CONCEPTS, mask_source="png", **options)
  (tmp_path / "fish").mkdir()
  Image.fromarray(mace_cases.images()[0]).save(tmp_path / "fish" / "0.png")
  with pytest.raises(ValueError, match="no masks of 'fish'"):
    erase(model, CONCEPTS, mask_source="png", **options)


def test_images_drawn_by_the_model(model):
  options = {"examples": None, "num_images": 3, "num_inference_steps": 2}
  with warnings.catch_warnings():
    # Random weights draw nothing that has a place.
    warnings.simplefilter("ignore")
    edit, _ = erase(model, CONCEPTS[:1], mask_source="attention", **options)
  found = edit.diagnostics["concepts"]["xyz"]
  assert (found["images"], found["mask_source"]) == ("drawn", "attention")


def test_pixels_reach_the_autoencoder_as_asked(model):
  sd, params = model
  pixels = mace_cases.images()
  # [-1, 1]; and ImageNet's mean and spread, by channel.
  centred = pixels / 127.5 - 1
  shifted = pixels / 255 - np.array([0.485, 0.456, 0.406])
  scaled = shifted / np.array([0.229, 0.224, 0.225])
  for how, values in (("vae", centred), ("reference", scaled)):
    mean, logvar = models.apply(
      sd.vae, params["vae"], np.float32(values), method="encode"
    )
    scale = sd.vae.config.scaling_factor
    found, spread = image.encode_images(sd, params, pixels, how)
    np.testing.assert_allclose(found, scale * mean, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(spread, scale * np.exp(logvar / 2), rtol=1e-3)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"preset": "fixd"}, "preset='fixd'.*did you mean 'fixed'"),
    ({"recipe": "celebrity"}, "recipe='celebrity'"),
    ({"mask_source": "sam"}, "mask_source='sam'.*attention"),
    ({"loss_form": "square"}, "loss_form='square'.*did you mean 'squared'"),
    ({"target_tokens": "eos"}, "target_tokens='eos'"),
    ({"lamb": -1.0}, "lamb=-1"),
    ({"fuse_scale": np.inf}, "fuse_scale=inf"),
    ({"learning_rate": -1e-4}, "learning_rate=-0.0001"),
    ({"num_steps": 0}, "num_steps=0"),
    ({"pack": 0}, "pack=0"),
    ({"focus": (400, 200, 0.05)}, "t1=400, t2=200"),
    ({"num_prompts": 4}, "num_prompts=4; allowed: 1 to 3"),
    ({"rank": 17}, "rank=17; allowed: 1 to 8"),
    ({"data": "x"}, "data and examples: give one of them"),
    ({"examples": None, "mask_source": "png"}, "mask_source='png': give data"),
    ({"examples": {}}, "examples: none of 'xyz'"),
    (
      {"examples": {"xyz": (mace_cases.images(), None)}},
      "mask_source='analytic': examples hold no masks of 'xyz'",
    ),
    (
      {"mask_source": "attention"},
      "examples hold masks of 'xyz', which mask_source='attention' does not",
    ),
    (
      {"examples": {"xyz": (mace_cases.images()[:, 1:], mace_cases.masks())}},
      r"images of 'xyz': uint8 .*allowed: uint8 \(m, 16, 16, 3\)",
    ),
    ({"captions": "no/such/file.txt"}, "captions='no/such/file.txt': no such"),
  ],
)  # fmt: skip
def test_options_that_cannot_be(model, changes, message):
  with pytest.raises(ValueError, match=message):
    erase(model, CONCEPTS[:1], **changes)


def test_concepts_that_cannot_be(model):
  style = Concept("xyz", "art", (), "art")
  for concepts, message in (
    ((), "no concept"),
    ((Concept("xyz", "a"), Concept("XYZ", "b")), "given twice"),
    ((Concept("fish", "big fish"),), "contains the concept"),
    ((style,), "'xyz' is a style, which has no masks"),
  ):
    with pytest.raises(ValueError, match=message):
      erase(model, concepts)


# --- Published harmonic means ---


@pytest.mark.parametrize(
  "erased, kept, published",
  [
    (4.31, 84.56, 89.78),
    (67.79, 85.05, 46.72),
    (0.08, 32.16, 48.66),
    (18.70, 61.78, 70.21),
  ],
)
def test_harmonic_means_of_the_celebrities(erased, kept, published):
  found = 100 * harmonic(erased / 100, kept / 100)
  assert found == pytest.approx(published, abs=0.01)


def test_harmonic_mean_of_the_objects():
  # Printed as 92.61, because the paper averages the classes' own.
  found = 100 * harmonic(0.0849, 0.9735, 0.1053)
  assert found == pytest.approx(92.66, abs=0.01)


def test_harmonic_mean_at_the_ends():
  assert harmonic(0.0, 1.0) == 1.0
  assert harmonic(1.0, 1.0) == harmonic(0.0, 0.0) == 0.0
  for wrong in (-0.1, 1.1, float("nan")):
    with pytest.raises(ValueError, match="kept=.*allowed: 0 to 1"):
      harmonic(0.0, wrong)
