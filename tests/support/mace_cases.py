"""A whole model small enough to train adapters on in a test."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from tests.support import closed_form_cases as cases
from unlearning_jax import models, schedules

_UNET = {
  "block_out_channels": (8, 16),
  "down_block_types": ("CrossAttnDownBlock2D",) * 2,
  "up_block_types": ("CrossAttnUpBlock2D",) * 2,
  "attention_head_dim": 2,
  "layers_per_block": 1,
  "cross_attention_dim": cases.WIDTH,
  "norm_num_groups": 4,
}
_VAE = {
  "block_out_channels": (4, 8),
  "down_block_types": ("DownEncoderBlock2D",) * 2,
  "up_block_types": ("UpDecoderBlock2D",) * 2,
  "layers_per_block": 1,
  "norm_num_groups": 2,
}
_SCHEDULE = {
  "_class_name": "DDIMScheduler",
  "beta_start": 0.00085,
  "beta_end": 0.012,
  "beta_schedule": "scaled_linear",
}
TEMPLATES = {
  "object": ("a {}", "{} b", "c {} d"),
  "art": ("art {}", "{} art", "e {} f"),
  "unsafe": ("a {}", "{} b", "c {} d"),
}


def world(folder):
  """The model of `closed_form_cases` with a real UNet and autoencoder."""
  sd, params = cases.tiny(folder)
  sd = dataclasses.replace(
    sd,
    unet=models.UNet2DCondition.from_config(_UNET),
    vae=models.AutoencoderKL.from_config(_VAE),
    schedule=schedules.Schedule.from_config(_SCHEDULE),
  )
  rng = np.random.default_rng(0)

  def fill(leaf):
    gain = 1 / np.sqrt(np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.1
    return np.float32(gain * rng.normal(size=leaf.shape) + (leaf.ndim == 1))

  latents = jnp.zeros((1, *sd.latent_shape))
  image = jnp.zeros((1, 16, 16, 3))
  steps, context = jnp.zeros(1, jnp.int32), jnp.zeros((1, *sd.context_shape))
  key = jax.random.key(0)
  unet = jax.eval_shape(sd.unet.init, key, latents, steps, context)["params"]
  vae = jax.eval_shape(sd.vae.init, key, image)["params"]
  return sd, {
    "text_encoder": params["text_encoder"],
    "unet": jax.tree.map(fill, unet),
    "vae": jax.tree.map(fill, vae),
  }


def images(count=3, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def masks(count=3):
  found = np.zeros((count, 16, 16), np.uint8)
  found[:, 2:9, 5:12] = 1
  return found


def untrained(adapters):
  """Projections whose adapters stayed zero.

  What the last layer's values say is seen by no attention after it.
  """
  return {k for k, v in adapters.items() if not np.abs(v["up"]).max() > 0}


LAST = {
  "up_blocks_1/attentions_1/transformer_blocks_0/attn2/to_v/kernel",
}
