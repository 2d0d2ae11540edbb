"""Devices by name: how much memory a program can have on one."""

import os
import re
from typing import NamedTuple

import jax

from unlearning_jax.concepts import check_choice

GIB = 2**30


class Device(NamedTuple):
  """A kind of chip.

  Attributes:
    gib: of its memory, as its maker counts it or, for a TPU, as its compiler
      allows.
    like: the kind whose recorded programs stand for its own.
    kind: what JAX calls it, a pattern.
  """

  gib: float
  like: str
  kind: str


# TPUs: what the compiler of libtpu 0.0.52 says is available.
DEVICES = {
  "v5e": Device(15.75, "v5e", r"TPU v5 ?(lite|e)"),
  "v5p": Device(95.73, "v5p", r"TPU v5p?$"),
  "v6e": Device(31.24, "v6e", r"TPU v6"),
  "t4": Device(15.0, "h200", r"Tesla T4"),
  "v100": Device(16.0, "h200", r"V100"),
  "l4": Device(22.5, "h200", r"\bL4\b"),
  "a100": Device(40.0, "h200", r"A100.*40GB"),
  "a100-80": Device(80.0, "h200", r"A100.*80GB"),
  "h100": Device(80.0, "h200", r"H100"),
  "h200": Device(139.8, "h200", r"H200"),
}
# JAX takes this share of a GPU's memory, unless a variable says another.
SHARE, VARIABLE = 0.75, "XLA_PYTHON_CLIENT_MEM_FRACTION"


def named(name: str) -> tuple[str, str, float]:
  """A device's name, whose programs stand for its own, and its usable GiB.

  Args:
    name: a key of `DEVICES`, "cpu", or "" for the device at hand.

  Raises:
    ValueError: there is no such device.
  """
  if not name:
    return _at_hand()
  name = name.lower()
  check_choice("--device", name, ["cpu", *DEVICES])
  if name == "cpu":
    return "cpu", "cpu", _machine()
  device = DEVICES[name]
  share = 1.0
  if device.like == "h200":
    share = float(os.environ.get(VARIABLE) or SHARE)
  return name, device.like, device.gib * share


def _at_hand() -> tuple[str, str, float]:
  device = jax.local_devices()[0]
  if device.platform == "cpu":
    return named("cpu")
  found = [
    name for name, d in DEVICES.items() if re.search(d.kind, device.device_kind)
  ]
  limit = (device.memory_stats() or {}).get("bytes_limit")
  name = found[0] if found else ""
  like = DEVICES[name].like if name else ""
  if limit:
    return name or device.device_kind, like, limit / GIB
  return (device.device_kind, "", 0.0) if not name else named(name)


def _machine() -> float:
  """GiB of this machine's memory."""
  return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
