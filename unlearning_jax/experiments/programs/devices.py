"""Devices by name: how much memory a program can have on one."""

import os
import re
from typing import NamedTuple

import jax

from unlearning_jax.concepts import check_choice

GIB = 2**30


class Device(NamedTuple):
  """A kind of chip whose programs can be recorded or compiled for.

  Attributes:
    gib: of its memory, as its maker counts it or, for a TPU, as its compiler
      allows.
    kind: what JAX calls it, a pattern.
  """

  gib: float
  kind: str


# TPUs: what the compiler of libtpu 0.0.52 says is available. Another GPU than
# the recorded one has other programs.
DEVICES = {
  "v5e": Device(15.75, r"TPU v5 ?(lite|e)"),
  "v5p": Device(95.73, r"TPU v5p?$"),
  "v6e": Device(31.24, r"TPU v6"),
  "h200": Device(139.8, r"H200"),
}
# JAX takes this share of a GPU's memory, unless a variable says another.
SHARE, VARIABLE = 0.75, "XLA_PYTHON_CLIENT_MEM_FRACTION"


def named(name: str) -> tuple[str, float]:
  """A device's name, and its usable GiB; 0 if they cannot be known.

  Args:
    name: a key of `DEVICES`, or "" for the device at hand.

  Raises:
    ValueError: there is no such device.
  """
  if not name:
    return _at_hand()
  name = name.lower()
  check_choice("--device", name, DEVICES)
  share = 1.0
  if name == "h200":
    share = float(os.environ.get(VARIABLE) or SHARE)
  return name, DEVICES[name].gib * share


def _at_hand() -> tuple[str, float]:
  device = jax.local_devices()[0]
  if device.platform == "cpu":
    # Its devices share what memory the machine, or the job, leaves them.
    return "cpu", 0.0
  found = [
    name for name, d in DEVICES.items() if re.search(d.kind, device.device_kind)
  ]
  limit = (device.memory_stats() or {}).get("bytes_limit")
  if limit:
    return (found or [device.device_kind])[0], limit / GIB
  return named(found[0]) if found else (device.device_kind, 0.0)
