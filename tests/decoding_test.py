"""Large images are decoded one at a time on each device."""

import functools

import jax
import numpy as np
import pytest

from unlearning_jax import sharding, stable_diffusion
from unlearning_jax.experiments.programs import build
from unlearning_jax.noise import row_noise


@pytest.fixture(scope="module")
def model():
  sd = build.make_sd("tiny", "float32", "auto")
  return sd, jax.tree.map(np.asarray, build.weights(build.shapes(sd)))


def test_large_images_are_decoded_one_after_the_other(model, monkeypatch):
  """On each device its own, and they are the pictures of all at once."""
  sd, params = model
  latents = np.array(row_noise(range(4), sd.latent_shape))
  latents[2, 0, 0, 0] = np.nan
  turns, plain = [], sharding.in_turns

  def counted(function, rows, count):
    turns.append(count)
    return plain(function, rows, count)

  monkeypatch.setattr(sharding, "in_turns", counted)
  found = [stable_diffusion.decode_uint8(sd, params, latents)]
  monkeypatch.setattr(stable_diffusion, "_LARGE", 1)
  found.append(stable_diffusion.decode_uint8(sd, params, latents))
  mesh = sharding.make_mesh(devices=jax.devices()[:2])
  there = sharding.place(params, sharding.replicated(mesh))
  shared = sharding.place(latents, sharding.batch_sharding(mesh))
  found.append(stable_diffusion.decode_uint8(sd, there, shared))
  assert turns == [1, 4, 2]
  for images, finite in found:
    np.testing.assert_array_equal(finite, [True, True, False, True])
    off = np.abs(np.asarray(images, int) - np.asarray(found[0][0], int))
    assert off.max() <= 1 and (off > 0).mean() < 1e-3


def test_the_decoder_is_the_same_in_turns(model):
  sd, params = model
  latents = row_noise(range(4), sd.latent_shape)

  @functools.partial(jax.jit, static_argnums=0)
  def decoded(turns, latents):
    decode = functools.partial(stable_diffusion.decode, sd, params)
    return sharding.in_turns(decode, latents, turns)

  at_once = decoded(1, latents)
  for turns in (2, 4):
    gap = np.abs(decoded(turns, latents) - at_once).max()
    assert gap < 1e-5 * np.abs(at_once).max()
