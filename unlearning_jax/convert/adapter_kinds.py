"""What adapters make of a weight: the sums of LoRA and of its kin.

  lora         W + s U D
  loha         W + s (A1 B1) * (A2 B2), multiplied entry by entry
  lokr         W + s W1 (x) W2, a Kronecker product of two factors
  difference   W + what the file holds
  ia3          W with every row, or every column, scaled
  dora         any of the first three, with the length of each row given apart

The names of parts are those of LyCORIS. A convolution's factors may share a
small kernel (`mid`, `t1`, `t2`), which is Tucker's form.
"""

import math
from collections.abc import Mapping

import numpy as np

_ANYWHERE = {"alpha", "dora_scale", "magnitude", "diff_b"}
# The two factors of LoKr, each whole or a product; the second also has Tucker's
# form.
_KRON_1 = ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
_KRON_2 = (({"lokr_w2"}, set()), ({"lokr_w2_a", "lokr_w2_b"}, {"lokr_t2"}))
# A module has all of the first set of a row, and perhaps some of the second.
_ROWS: tuple[tuple[set[str], set[str]], ...] = (
  ({"down", "up"}, {"mid", *_ANYWHERE}),
  ({f"hada_w{i}_{j}" for i in "12" for j in "ab"},
   {"hada_t1", "hada_t2", *_ANYWHERE}),
  *((one | two, may | _ANYWHERE) for one in _KRON_1 for two, may in _KRON_2),
  ({"diff"}, _ANYWHERE),
  ({"diff_b"}, set()),
  ({"ia3"}, {"on_input", "alpha", "diff_b"}),
  ({"ia3_l"}, {"on_input", "alpha", "diff_b"}),
)  # fmt: skip

Parts = Mapping[str, np.ndarray]


def check(parts: Parts, name: str):
  """Refuses parts of a module that do not make one adapter.

  Raises:
    ValueError: naming what is missing or too much.
  """
  if not any(needs <= set(parts) <= needs | may for needs, may in _ROWS):
    raise ValueError(f"{name!r} has {sorted(parts)} only")


def rank(parts: Parts) -> int | None:
  """The rank that alpha is divided by; None where no part has one."""
  for key in ("down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b"):
    if key in parts:
      return len(parts[key]) if parts[key].ndim else 0
  return None


def merged(parts: Parts, scale: float, weight: np.ndarray) -> np.ndarray | None:
  """The weight with the adapter in it; None if their shapes do not fit.

  Args:
    parts: float32 tensors by name.
    scale: s above.
    weight: float32, in torch's layout: (out, in), or (out, in, h, w).
  """
  if "ia3" in parts or "ia3_l" in parts:
    return _scaled(parts, weight)
  try:
    # Checked first: factors of another model could make a huge product.
    if _size(parts) != weight.size:
      return None
    change = np.float32(scale) * _change(parts).reshape(weight.shape)
  except (ValueError, IndexError):
    return None
  if not _same_sides(parts, weight.shape):
    return None
  return _with_lengths(parts, weight + change)


def _size(parts: Parts) -> int:
  """How many numbers the product of the factors has."""
  if "diff" in parts:
    return parts["diff"].size
  if "down" in parts:
    sides = parts["up"].shape[0] * math.prod(parts["down"].shape[1:])
    return sides * math.prod(parts["mid"].shape[2:] if "mid" in parts else ())
  if "hada_w1_a" in parts:
    one, two = (_shape_of_product(parts, f"hada_w{i}") for i in "12")
    # Unequal ones could still be multiplied, to more than either.
    return math.prod(one) if one == two else -1
  whole = {
    key: parts[key].size for key in ("lokr_w1", "lokr_w2") if key in parts
  }
  for i in "12":
    if f"lokr_w{i}" not in whole:
      whole[f"lokr_w{i}"] = math.prod(_shape_of_product(parts, f"lokr_w{i}"))
  return math.prod(whole.values())


def _shape_of_product(parts: Parts, name: str) -> tuple[int, ...]:
  """The shape of a product whose factors are called `name`_a and `name`_b."""
  one, two = parts[f"{name}_a"].shape, parts[f"{name}_b"].shape
  kernel = parts.get(name.replace("_w", "_t"))
  if kernel is None:
    return one[0], two[1]
  return one[1], two[1], *kernel.shape[2:]


def merged_bias(parts: Parts, bias: np.ndarray) -> np.ndarray:
  """The bias with the adapter in it."""
  if "diff_b" in parts:
    bias = bias + parts["diff_b"].reshape(bias.shape)
  # PEFT scales what the layer returns, and its bias is a part of that.
  if "ia3_l" in parts and not parts["on_input"]:
    bias = bias * parts["ia3_l"].reshape(bias.shape)
  return bias


def _change(parts: Parts) -> np.ndarray:
  if "diff" in parts:
    return parts["diff"]
  if "down" in parts:
    up, down = parts["up"], parts["down"]
    up = up.reshape(up.shape[:2])
    if "mid" in parts:
      down = down.reshape(down.shape[:2])
      return np.einsum(
        "oa,ab...,bi->oi...", up, parts["mid"], down, optimize=True
      )
    flat = up @ down.reshape(len(down), -1)
    return flat.reshape(len(up), *down.shape[1:])
  if "hada_w1_a" in parts:
    one, two = (
      _product(
        parts.get(f"hada_t{i}"), *(parts[f"hada_w{i}_{j}"] for j in "ab")
      )
      for i in "12"
    )
    return one * two
  one = parts.get("lokr_w1")
  if one is None:
    one = parts["lokr_w1_a"] @ parts["lokr_w1_b"]
  two = parts.get("lokr_w2")
  if two is None:
    two = _product(parts.get("lokr_t2"), parts["lokr_w2_a"], parts["lokr_w2_b"])
  return np.kron(one.reshape(*one.shape, *(1,) * (two.ndim - one.ndim)), two)


def _product(
  kernel: np.ndarray | None, one: np.ndarray, two: np.ndarray
) -> np.ndarray:
  """A B, or Tucker's form with a small kernel between A^T and B."""
  if kernel is None:
    return one @ two
  return np.einsum("ab...,ao,bi->oi...", kernel, one, two, optimize=True)


def _same_sides(parts: Parts, shape: tuple[int, ...]) -> bool:
  """Whether a LoRA's sides are the weight's, and not only their product."""
  if "down" not in parts:
    return True
  down, up = parts["down"].shape, parts["up"].shape
  return down[1:2] == shape[1:2] and up[:1] == shape[:1]


def _scaled(parts: Parts, weight: np.ndarray) -> np.ndarray | None:
  """(IA)^3: LyCORIS keeps what is added to one, PEFT the factor itself."""
  factor = parts["ia3_l"] if "ia3_l" in parts else 1 + parts["ia3"]
  side = int(bool(parts.get("on_input", np.zeros(())).item()))
  if factor.size != weight.shape[side]:
    return None
  shape = [1] * weight.ndim
  shape[side] = factor.size
  return weight * factor.reshape(shape)


def _with_lengths(parts: Parts, weight: np.ndarray) -> np.ndarray | None:
  """DoRA: the weight's direction, with lengths that were learnt apart."""
  lengths = parts.get("magnitude", parts.get("dora_scale"))
  if lengths is None:
    return weight
  # PEFT keeps one length a row. LyCORIS may keep one a column.
  side = int("magnitude" not in parts and lengths.shape[:1] != weight.shape[:1])
  if lengths.size != weight.shape[side]:
    return None
  axes = tuple(axis for axis in range(weight.ndim) if axis != side)
  norms = np.sqrt(np.sum(np.square(weight), axes, keepdims=True))
  return weight * (lengths.reshape(norms.shape) / norms)
