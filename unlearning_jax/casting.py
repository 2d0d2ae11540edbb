"""Weights in the type that networks compute in.

A network that computes in bfloat16 rounds every weight when it reads it. A loop
over its steps then keeps the rounded weights beside the others. Rounded before
they lie on a device, they take half the memory, and no loop copies them. Each
product is the same.
"""

from typing import Any

import jax
import numpy as np

from unlearning_jax import sharding
from unlearning_jax.stable_diffusion import Params, StableDiffusion

# Layers that compute in float32 in every network; norms do so too.
_FLOAT32 = {"conv_out", "quant_conv"}


def as_computed(sd: StableDiffusion, params: Params) -> Params:
  """Parameters to draw with or to attack, but not to train.

  Args:
    params: any of {text_encoder, unet, vae}; host arrays, arrays on devices or
      traced ones.

  Returns:
    The same tree. A leaf that is read as it lies is the same array.
  """
  types = {"unet": sd.unet.config.dtype, "vae": sd.vae.config.dtype}

  def cast(part: str, path: Any, leaf: Any) -> Any:
    names = [key.key for key in path]
    kept = _FLOAT32 & {*names} or any("norm" in name for name in names)
    # A leaf that lies rounded already stays so.
    if kept or leaf.dtype != np.float32:
      return leaf
    dtype = np.dtype(types[part])
    return leaf if leaf.dtype == dtype else leaf.astype(dtype)

  return {
    part: jax.tree_util.tree_map_with_path(
      lambda path, leaf, part=part: cast(part, path, leaf), tree
    )
    if part in types
    else tree
    for part, tree in params.items()
  }


def placed(sd: StableDiffusion, params: Params, mesh: sharding.Mesh) -> Params:
  """`as_computed` of host arrays, whole on every device of a mesh."""
  where = sharding.replicated(mesh)
  return sharding.place(as_computed(sd, params), where)


def on_device(sd: StableDiffusion, params: Params) -> Params:
  """Host arrays `as_computed`, on the default device.

  Arrays that are on devices stay as they are: a copy would need more memory.
  """
  if not any(isinstance(x, jax.Array) for x in jax.tree.leaves(params)):
    params = as_computed(sd, params)
  return sharding.on_device(params)
