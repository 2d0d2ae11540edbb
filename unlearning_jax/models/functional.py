"""Calling a network as a function of its parameters."""

from typing import Any

import flax.linen as nn
from flax import traverse_util
from jaxtyping import Array, Float

from unlearning_jax.models.attention import PROBABILITIES


def apply(module: nn.Module, params: Any, *args: Any, **kwargs: Any) -> Any:
  """`module.apply` without the collections: `params` in, outputs out."""
  return module.apply({"params": params}, *args, **kwargs)


def apply_with_attention(
  module: nn.Module, params: Any, *args: Any
) -> tuple[Any, dict[str, Float[Array, "b heads q l"]]]:
  """`apply`, and the probabilities of every cross-attention, by its path.

  A path is that of the layer's kernels, as ".../transformer_blocks_0/attn2".
  They are computed densely, in float32, whatever the module's attention is; the
  self-attentions are not touched.
  """
  out, state = module.apply({"params": params}, *args, mutable=[PROBABILITIES])
  leaves: dict[str, Any] = dict(
    traverse_util.flatten_dict(state[PROBABILITIES], sep="/")
  )
  return out, {k.removesuffix("/weights"): v for k, v in leaves.items()}
