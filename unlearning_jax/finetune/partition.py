"""Which parameters train, and how they join those that do not."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util
from jaxtyping import PRNGKeyArray

from unlearning_jax import lora
from unlearning_jax.concepts import check_choice

Params = Mapping[str, Any]
Leaves = dict[str, Any]
# A leaf, not a constant: runs packed in one program may differ in it.
_SCALE = "lora/scale"

_KEYS_AND_VALUES = ("attn2/to_k/kernel", "attn2/to_v/kernel")
_ATTENTION = ("/attn1/", "/attn2/")

# Subset -> whether it has the parameter of this path.
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
    trained: what the optimizer sees, a tree.
    frozen: the other parameters, path -> leaf.
    join: (trained, frozen) -> parameters as a tree; differentiable.
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
  """Splits a model by the name of what trains.

  Args:
    params: components by name; parts that no loss reads may be left out.
    train: "full" for the UNet, "cross" for its cross-attention, "kv" for the
      keys and values of that, "no_kv" for all of the UNet but those,
      "no_attention" for all but attention, "text_encoder", or "lora".
    key: draws the adapters of "lora".
    rank: of the adapters.
    alpha: their scale times their rank; None for the rank, which is scale 1.
    targets: which kernels are adapted, see `lora.init`.

  Raises:
    ValueError: an unknown name, or nothing that bears it.
  """
  check_choice("train", train, TRAINABLE)
  if train != "lora":
    return subset(params, SUBSETS[train], train)
  if key is None:
    raise ValueError("train='lora' draws its adapters: it needs a key")
  scale = np.float32((rank if alpha is None else alpha) / rank)
  adapters = lora.init(params, key, rank=rank, targets=targets)
  return Partition(adapters, _flatten(params) | {_SCALE: scale}, merge_adapters)


def merge_adapters(trained: Any, frozen: Leaves) -> dict[str, Any]:
  """The `join` of "lora"; the adapters' scale is a leaf of `frozen`."""
  leaves = {path: leaf for path, leaf in frozen.items() if path != _SCALE}
  return lora.merge(_unflatten(leaves), trained, frozen[_SCALE])


def subset(
  params: Params, wanted: Callable[[str], bool], name: str = "this"
) -> Partition:
  """The parameters whose path (`unet/conv_in/kernel`) is wanted train.

  Raises:
    ValueError: there is none.
  """
  leaves = _flatten(params)
  trained = {path: leaf for path, leaf in leaves.items() if wanted(path)}
  if not trained:
    raise ValueError(
      f"train={name!r}: none of {len(leaves)} parameters is meant, the first "
      f"of which is {next(iter(leaves), 'missing')}"
    )
  frozen = {path: leaf for path, leaf in leaves.items() if path not in trained}
  return Partition(trained, frozen, join_leaves)


def join_leaves(trained: Leaves, frozen: Leaves) -> dict[str, Any]:
  """The `join` of a subset; one function, so that runs share a program."""
  return _unflatten(frozen | trained)


def _flatten(params: Params) -> Leaves:
  return dict(traverse_util.flatten_dict(dict(params), sep="/"))


def _unflatten(leaves: Leaves) -> dict[str, Any]:
  return traverse_util.unflatten_dict(leaves, sep="/")
