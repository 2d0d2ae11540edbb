"""Requests of all kinds, as one by one and as the plain loop draws them."""

import jax
import numpy as np
import pytest

from tests.stable_diffusion_test import PROMPTS, SEEDS, files, model
from unlearning_jax import sampling, stable_diffusion
from unlearning_jax.sampling import Request, Sampling

__all__ = ["files", "model"]
THREE = Sampling(num_inference_steps=3)


def drawn(model, requests, **options):
  options = {"batch_size": 2, **options}
  return np.concatenate([*sampling.draw(*model, requests, THREE, **options)])


def test_text_states_are_drawn_as_they_are(model):
  """An edit changes texts, and the negative prompt, but no states given."""
  sd, params = model
  states = stable_diffusion.encode_prompts(sd, params, PROMPTS)
  texts = drawn(model, [*map(Request, PROMPTS, SEEDS)])
  given = [
    Request("", seed, None, np.asarray(context))
    for seed, context in zip(SEEDS, states, strict=True)
  ]
  np.testing.assert_array_equal(drawn(model, given), texts)
  half = drawn(model, given, edit_context=lambda states: states / 2)
  assert np.abs(half.astype(int) - texts).max() > 5


def test_a_request_has_its_own_guidance(model):
  asked = [
    Request(prompt, seed, scale)
    for prompt, seed, scale in zip(
      PROMPTS, SEEDS, (None, 2.0, 7.5, None, 3.0), strict=True
    )
  ]
  found = drawn(model, asked).astype(int)
  for request, image in zip(asked, found, strict=True):
    (alone,) = drawn(
      model, [request._replace(guidance=request.guidance or 7.5)]
    )
    assert np.abs(alone - image).max() <= 1


def test_a_prompt_that_may_be_cut_lets_no_other_be_cut(model):
  long = " ".join(["a"] * 99)
  cut, whole = (Request(long, 0, truncate=truncate) for truncate in (1, 0))
  assert len(drawn(model, [cut, Request("a", 1)])) == 2
  with pytest.raises(ValueError, match="token"):
    drawn(model, [cut, whole])


def test_what_cannot_share_a_batch_is_grouped():
  states = np.zeros((8, 24), np.float32)
  asked = [
    Request("a", 0),
    Request("", 0, None, states),
    Request("a", 1, 1.0),
    Request("a", 2, 3.0),
  ]
  assert sampling.alike(asked, 7.5) == [[0, 3], [1], [2]]
  assert sampling.alike(asked, 1.0) == [[0, 2], [1], [3]]


def test_a_broken_image_is_never_drawn(model):
  sd, params = model
  vae = jax.tree.map(lambda leaf: leaf * np.nan, params["vae"])
  with pytest.raises(FloatingPointError, match="1 of 1 images hold NaN.*'a'"):
    drawn((sd, {**params, "vae": vae}), [Request("a", 0)])


def test_unlike_requests_are_refused(model):
  with pytest.raises(ValueError, match="one group of `sampling.alike`"):
    drawn(model, [Request("a", 0), Request("a", 0, 1.0)])


def test_sampling_names_what_is_wrong():
  with pytest.raises(ValueError, match="sampling.sampler='ddimm'.*ddim"):
    Sampling(sampler="ddimm")
  with pytest.raises(ValueError, match="sampling.noise_source='numpy'"):
    Sampling(noise_source="numpy")
  for scale in (float("nan"), float("inf"), 1e39, -1e39):
    with pytest.raises(ValueError, match="sampling.guidance_scale="):
      Sampling(guidance_scale=scale)
