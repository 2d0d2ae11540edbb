"""Calls a network as a function of its parameters."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from flax import traverse_util
from jaxtyping import Array, Float

from unlearning_jax.models.attention import PROBABILITIES


def apply(
  module: nn.Module, params: Mapping[str, Any], *args: Any, **kwargs: Any
) -> Any:
  """`module.apply` with `params` as the only collection."""
  return module.apply({"params": params}, *args, **kwargs)


def apply_with_attention(
  module: nn.Module, params: Mapping[str, Any], *args: Any
) -> tuple[Any, dict[str, Float[Array, "b heads q l"]]]:
  """`apply`, and the float32 probabilities of every cross-attention layer.

  They are by the layer's path, such as ".../transformer_blocks_0/attn2". These
  layers are computed densely; self-attention stays as the module has it.
  """
  out, state = module.apply({"params": params}, *args, mutable=[PROBABILITIES])
  leaves: dict[str, Any] = dict(
    traverse_util.flatten_dict(state[PROBABILITIES], sep="/")
  )
  return out, {k.removesuffix("/weights"): v for k, v in leaves.items()}
