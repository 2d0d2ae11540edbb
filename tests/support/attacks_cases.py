"""A small world to attack: random networks, five prompts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from unlearning_jax import models, shapes, stable_diffusion
from unlearning_jax.attacks.engine import insertion, rows
from unlearning_jax.attacks.engine.victim import Pool, Victim

UNET = {
  "sample_size": 8,
  "in_channels": 8,
  "out_channels": 8,
  "block_out_channels": (16,),
  "down_block_types": ("CrossAttnDownBlock2D",),
  "up_block_types": ("CrossAttnUpBlock2D",),
  "layers_per_block": 1,
  "cross_attention_dim": 128,
  "attention_head_dim": 2,
  "norm_num_groups": 8,
}
PROMPTS = ["a star", "a red star", "a blue star on gray", "two words", "a fish"]


def drawn(unet, seed, latents, context):
  """As Flax begins, but for its compiling; with other random numbers."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    if leaf.ndim == 1:
      one = jax.tree_util.keystr(path[-1:], simple=True) == "scale"
      return jnp.asarray(np.full(leaf.shape, one, np.float32))
    spread = np.prod(leaf.shape[:-1]) ** -0.5
    return jnp.asarray(np.float32(spread * rng.normal(size=leaf.shape)))

  steps = jnp.zeros(1, jnp.int32)
  made = {"params": models.parameter_shapes(unet, latents, steps, context)}
  return jax.tree_util.tree_map_with_path(draw, made)


def make_world(small=False):
  """A victim and an original, small and random.

  Args:
    small: with one layer of text, which compiles sooner.
  """
  sd, params = stable_diffusion.load(shapes.model_folder())
  unet = models.UNet2DCondition.from_config(UNET)
  sd = dataclasses.replace(sd, unet=unet)
  context = jnp.zeros((1, *sd.context_shape))
  latents = jnp.zeros((1, *sd.latent_shape))
  text = jax.tree.map(jnp.asarray, params["text_encoder"])
  if small:
    fresh = [drawn(unet, i, latents, context) for i in range(2)]
    config = dataclasses.replace(sd.text_encoder.config, num_hidden_layers=1)
    sd = dataclasses.replace(sd, text_encoder=type(sd.text_encoder)(config))
    layers = text["text_model"]["encoder"]
    text["text_model"]["encoder"] = {"layers_0": layers["layers_0"]}
  else:
    start = jax.jit(unet.init)
    fresh = [
      start(jax.random.key(i), latents, jnp.zeros(1, jnp.int32), context)
      for i in range(2)
    ]
  victim, original = (
    Victim({"text_encoder": text, "unet": f["params"]}) for f in fresh
  )
  return sd, victim, original


def table(sd, prompts=PROMPTS):
  rng = np.random.default_rng(0)
  return [
    rows.Row(
      f"r{i}", 7 * i, prompt, 2**31 + i, 4.0,
      rng.normal(size=sd.latent_shape).astype(np.float32),
    )
    for i, prompt in enumerate(prompts)
  ]  # fmt: skip


def pool(sd, attack, named="a picture of a star", count=3):
  """Images of a concept, all called `named`, the word before the last one."""
  if not getattr(attack.h, "pool", ""):
    return None
  text = named.rpartition(" ")[0]
  ids = stable_diffusion.tokenize(sd, [text])
  n = int((ids[0] == sd.tokenizer.eos_token_id).argmax()) - 1
  source = insertion.between(n, n, attack.h.num_tokens, ids.shape[1], text)[
    None
  ]
  rng = np.random.default_rng(3)
  latents = rng.normal(size=(count, *sd.latent_shape)).astype(np.float32)
  return Pool(latents, ids, source, stable_diffusion.tokenize(sd, [named]))
