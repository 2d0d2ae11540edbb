"""Calling a network as a function of its parameters."""

from typing import Any

import flax.linen as nn


def apply(module: nn.Module, params: Any, *args: Any, **kwargs: Any) -> Any:
  """`module.apply` without the collections: `params` in, outputs out."""
  return module.apply({"params": params}, *args, **kwargs)
