"""An edit of eight devices is the edit of one, in float64."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.support import closed_form_cases as cases
from tests.support import mace_cases
from tests.support.closed_form_cases import relative
from unlearning_jax import closed_form, sharding
from unlearning_jax.concepts import Concept, make_concepts
from unlearning_jax.erasures import mace, rece, time, uce
from unlearning_jax.erasures.mace import stages
from unlearning_jax.projections import cross_attention_kernels

CONCEPTS = make_concepts(["ab c", "xyz"], ["d", "e"], ["fg", "h i"])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return cases.tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def wide():
  with jax.enable_x64(True):
    yield


def layouts(params):
  """A model of float64 projections on one device, and one spread over eight.

  Every device encodes text by itself; the projections are split.
  """
  params = {**params, "unet": jax.tree.map(np.float64, params["unet"])}
  mesh = sharding.make_mesh(data=2, fsdp=4)
  split = sharding.param_sharding(mesh, params["unet"], min_bytes=0)
  spread = {
    "text_encoder": sharding.place(
      params["text_encoder"], sharding.replicated(mesh)
    ),
    "unet": sharding.place(params["unet"], split),
    "vae": {},
  }
  kernels = cross_attention_kernels(spread).values()
  assert not any(kernel.sharding.is_fully_replicated for kernel in kernels)
  return params, spread


@pytest.mark.parametrize(
  "method", [uce, rece, time], ids=["uce", "rece", "time"]
)
def test_maps(method, model, wide):
  sd, params = model
  one, eight = (
    method.erase(sd, layout, CONCEPTS, None, method.Hparams()).context_map
    for layout in layouts(params)
  )
  assert np.abs(one - np.eye(len(one))).max() > 1e-2
  assert relative(eight, one) < 1e-12


def test_refinement_and_fusion(model, wide):
  sd, params = model
  concepts = (Concept("xyz", "moon", ("dog",)), Concept("fish", "b", ("dog",)))
  given = mace.Hparams(
    templates=mace_cases.TEMPLATES,
    num_prompts=3,
    captions=["art", "moon b"],
    domain_weight=2.0,
    preserve_scale=0.5,
    fuse_scale=0.7,
    lamb=1.0,
  )
  rng = np.random.default_rng(0)
  adapters = {
    path: {
      "down": rng.normal(size=(kernel.shape[0], 2)),
      "up": rng.normal(size=(2, kernel.shape[1])),
    }
    for path, kernel in cross_attention_kernels(params).items()
  }
  found = []
  for layout in layouts(params):
    said = stages.speak(sd, layout, concepts, jax.random.key(0), given)
    begun = stages.start(sd, layout, concepts, said, given)
    foreign = begun.parts[0].__class__(
      "mine", closed_form.Sums.zero(cases.WIDTH), begun.prior, adapters
    )
    whole = dataclasses.replace(begun, parts=(*begun.parts, foreign))
    solved = cross_attention_kernels(whole.solve(layout)[0])
    found.append((whole.refine(layout)[0], solved))
  base = cross_attention_kernels(params)
  for one, eight in zip(*found, strict=True):
    for path, kernel in one.items():
      change = kernel - base[path]
      assert relative(np.asarray(eight[path]) - base[path], change) < 1e-12
