"""Splits parameters into those that train and those that do not."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util
from jaxtyping import PRNGKeyArray

from unlearning_jax import lora
from unlearning_jax.concepts import check_choice
from unlearning_jax.projections import Params, leaves_of

Leaves = dict[str, Any]
# The scale is a leaf, because runs packed in one program may differ in it.
_SCALE = "lora/scale"

_KEYS_AND_VALUES = ("attn2/to_k/kernel", "attn2/to_v/kernel")
_ATTENTION = ("/attn1/", "/attn2/")

# Subset -> whether a parameter of this path belongs to it.
SUBSETS: dict[str, Callable[[str], bool]] = {
  "full": lambda path: path.startswith("unet/"),
  "cross": lambda path: "/attn2/" in path,
  "kv": lambda path: path.endswith(_KEYS_AND_VALUES),
  "no_kv": lambda path: (
    path.startswith("unet/") and not path.endswith(_KEYS_AND_VALUES)
  ),
  "no_attention": lambda path: (
    path.startswith("unet/") and not any(part in path for part in _ATTENTION)
  ),
  "text_encoder": lambda path: path.startswith("text_encoder/"),
}
TRAINABLE = (*SUBSETS, "lora")


class Partition(NamedTuple):
  """A model in two parts.

  Attributes:
    trained: tree of the parameters that the optimizer changes.
    frozen: the other parameters, path -> leaf.
    join: (trained, frozen) -> all parameters as a tree; differentiable.
  """

  trained: Any
  frozen: Leaves
  join: Callable[[Any, Leaves], dict[str, Any]]


def partition(
  params: Params,
  train: str,
  key: PRNGKeyArray | None = None,
  *,
  rank: int = 4,
  alpha: float | None = None,
  targets: str | Sequence[str] = "attention",
) -> Partition:
  """Splits a model by the name of the part that trains.

  Args:
    params: components by name; those that no loss reads may be missing.
    train: "full" for the UNet; "cross" for its cross-attention; "kv" for the
      keys and values of that; "no_kv" for the UNet without these keys and
      values; "no_attention" for it without all attention; "text_encoder"; or
      "lora" for new adapters.
    key: draws the adapters, which have rank `rank`.
    alpha: scale of the adapters times their rank; None for a scale of 1.
    targets: which kernels are adapted, see `lora.init`.

  Raises:
    ValueError: the name is unknown, or no parameter belongs to it.
  """
  check_choice("train", train, TRAINABLE)
  if train != "lora":
    return subset(params, SUBSETS[train], train)
  if key is None:
    raise ValueError("train='lora' needs a key, which draws the adapters")
  scale = np.float32((rank if alpha is None else alpha) / rank)
  adapters = lora.init(params, key, rank=rank, targets=targets)
  frozen = leaves_of(params) | {_SCALE: scale}
  return Partition(adapters, frozen, merge_adapters)


def merge_adapters(trained: lora.Adapters, frozen: Leaves) -> dict[str, Any]:
  """The `join` of "lora"; the adapters' scale is a leaf of `frozen`."""
  leaves = {path: leaf for path, leaf in frozen.items() if path != _SCALE}
  return lora.merge(join_leaves({}, leaves), trained, frozen[_SCALE])


def subset(
  params: Params, wanted: Callable[[str], bool], name: str = "this"
) -> Partition:
  """Trains the parameters whose path (`unet/conv_in/kernel`) is `wanted`.

  Raises:
    ValueError: there are none; the message calls the subset `name`.
  """
  leaves = leaves_of(params)
  trained = {path: leaf for path, leaf in leaves.items() if wanted(path)}
  if not trained:
    raise ValueError(
      f"train={name!r}: none of the {len(leaves)} parameters belongs to it; "
      f"the first is {next(iter(leaves), 'missing')}"
    )
  frozen = {path: leaf for path, leaf in leaves.items() if path not in trained}
  return Partition(trained, frozen, join_leaves)


def join_leaves(trained: Leaves, frozen: Leaves) -> dict[str, Any]:
  """The `join` of a subset; one function, so that runs share a program."""
  return traverse_util.unflatten_dict(frozen | trained, sep="/")
