"""A device with too little memory: which settings to halve."""

from collections.abc import Mapping
from typing import Any

from unlearning_jax import durable

# The keys that say how many rows or images a device computes at once.
SIZES = ("lanes", "batch_size")


def is_short(error: BaseException) -> bool:
  """Whether XLA could not allocate what a program needs."""
  # The storage of checkpoints calls a full disk so, too.
  return "RESOURCE_EXHAUSTED" in str(error) and not durable.is_full(error)


def remedy(
  error: BaseException, sizes: Mapping[str, Any], flag: str = "--"
) -> str:
  """What to type instead, and the first line of what XLA said.

  Args:
    error: XLA's.
    sizes: name of a flag -> its value; those that can be halved are named.
    flag: what is typed before a name.
  """
  halves = [
    f"{flag}{key}={size // 2}"
    for key, size in sizes.items()
    if isinstance(size, int) and size > 1
  ]
  way = "take a device with more memory, or more devices"
  if halves:
    way = f"start again with {' '.join(halves)}, and halve until it fits"
  said = str(error).strip().splitlines()[0]
  return f"the device has too little memory; {way}. {said}"
