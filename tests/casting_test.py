"""Weights in the type of the computation change no bit of what it gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unlearning_jax import casting, models, sharding, stable_diffusion
from unlearning_jax.experiments.programs import build


@pytest.fixture(scope="module")
def half():
  sd = build.make_sd("tiny", "bfloat16", "auto")
  return sd, jax.tree.map(np.asarray, build.weights(build.shapes(sd)))


def noise_of(sd, params, context):
  latents = jax.random.normal(jax.random.key(0), (2, *sd.latent_shape))
  t = jnp.array([3, 700])
  return stable_diffusion.predict_noise(sd, params, latents, t, context)


def gradient(sd, params, context):
  return jax.grad(lambda c: jnp.square(noise_of(sd, params, c)).sum())(context)


def images(sd, params, context):
  del context
  latents = jax.random.normal(jax.random.key(1), (2, *sd.latent_shape))
  return stable_diffusion.decode(sd, params, latents)


def moments(sd, params, context):
  del context
  pixels = jax.random.uniform(jax.random.key(2), (2, 16, 16, 3))
  return models.apply(sd.vae, params["vae"], pixels, method="encode")


@pytest.mark.parametrize("what", [noise_of, gradient, images, moments])
def test_every_result_is_the_same_to_the_bit(what, half):
  sd, params = half
  context = jax.random.normal(jax.random.key(3), (2, *sd.context_shape))
  function = jax.jit(what, static_argnums=0)
  whole = function(sd, params, context)
  cast = function(sd, casting.as_computed(sd, params), context)
  jax.tree.map(np.testing.assert_array_equal, whole, cast)
  assert np.abs(np.asarray(jax.tree.leaves(whole)[0])).max() > 0


def test_all_but_norms_and_last_layers_take_half_the_memory(half):
  sd, params = half
  cast = casting.as_computed(sd, params)
  assert cast["text_encoder"] is params["text_encoder"]
  for part in ("unet", "vae"):
    kept = [
      jax.tree_util.keystr(path)
      for path, leaf in jax.tree_util.tree_leaves_with_path(cast[part])
      if leaf.dtype != jnp.bfloat16
    ]
    assert kept and all(
      "norm" in one or "conv_out" in one or "['quant_conv']" in one
      for one in kept
    )


def test_a_float32_model_keeps_its_own_arrays(half):
  sd = build.make_sd("tiny", "float32", "auto")
  same = jax.tree.map(
    lambda a, b: a is b, half[1], casting.as_computed(sd, half[1])
  )
  assert jax.tree.all(same)


def test_only_host_arrays_are_cast_on_their_way(half):
  sd, params = half
  moved = casting.on_device(sd, params)
  assert moved["unet"]["conv_in"]["kernel"].dtype == jnp.bfloat16
  there = sharding.on_device(params)
  stays = casting.on_device(sd, there)["unet"]["conv_in"]["kernel"]
  assert stays is there["unet"]["conv_in"]["kernel"]


def test_placed_weights_lie_whole_on_every_device(half):
  sd, params = half
  mesh = sharding.make_mesh()
  kernel = casting.placed(sd, params, mesh)["unet"]["conv_in"]["kernel"]
  assert kernel.dtype == jnp.bfloat16
  assert len(kernel.addressable_shards) == mesh.size
  assert kernel.addressable_shards[-1].data.shape == kernel.shape
