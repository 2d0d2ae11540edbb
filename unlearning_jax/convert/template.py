"""Names, shapes and dtypes of the parameters that a model's configs ask for."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from unlearning_jax import models
from unlearning_jax.convert.folder import ModelFiles
from unlearning_jax.convert.names import to_flax


def templates(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """{component: tree of `jax.ShapeDtypeStruct`}; nothing is computed.

  Args:
    configs: `config.json` of text_encoder, unet and vae.

  Raises:
    ValueError: a config sets what the models do not support.
  """
  text_encoder = models.ClipTextModel.from_config(configs["text_encoder"])
  unet = models.UNet2DCondition.from_config(configs["unet"])
  vae = models.AutoencoderKL.from_config(configs["vae"])
  # The least sizes that every level can halve.
  latent = 2 ** len(unet.config.block_out_channels)
  image = 2 ** len(vae.config.block_out_channels)
  arguments = {
    "text_encoder": (text_encoder, [((1, 1), jnp.int32)]),
    "unet": (
      unet,
      [
        ((1, latent, latent, unet.config.in_channels), jnp.float32),
        ((1,), jnp.float32),
        ((1, 1, unet.config.cross_attention_dim), jnp.float32),
      ],
    ),
    "vae": (vae, [((1, image, image, vae.config.in_channels), jnp.float32)]),
  }
  trees = {}
  for component, (module, inputs) in arguments.items():
    structs = [jax.ShapeDtypeStruct(*shape_dtype) for shape_dtype in inputs]
    trees[component] = models.parameter_shapes(module, *structs)
  return trees


def to_params(files: ModelFiles) -> dict[str, Any]:
  """{component: tree of float32 numpy arrays}, views of `files.states`.

  Raises:
    ValueError: a key is missing, extra or misshaped, or a config sets what the
      models do not support.
  """
  return {
    component: to_flax(files.states[component], template, component)
    for component, template in templates(files.configs).items()
  }
