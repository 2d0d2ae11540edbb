"""What a compiled program says of itself: memory, work, collectives."""

import contextlib
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

# The least of XLA's effort levels, EFFORT_O0. Levels are what every libtpu
# reads: 0.0.52 ignores JAX's older numbers, `exec_time_optimization_effort`.
_LEAST = 9
# At default effort a TPU's machine code takes most of the time, and nobody
# looks at it, nor at a CPU's.
LOW_EFFORT = {
  "tpu": {"optimization_level": _LEAST, "memory_fitting_level": _LEAST},
  "cpu": {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
  },
}
KINDS = (
  "all-reduce", "all-gather", "all-to-all", "reduce-scatter",
  "collective-permute", "collective-broadcast", "ragged-all-to-all",
)  # fmt: skip
_COLLECTIVE = re.compile(
  rf" = (\(.*?\)|\S+) ({'|'.join(KINDS)})(-start)?\(", re.MULTILINE
)
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_BITS = re.compile(r"\d+")


@contextlib.contextmanager
def uncached() -> Iterator[None]:
  """Inside, programs are compiled and not read from disk."""
  was = getattr(jax.config, "jax_enable_compilation_cache")  # noqa: B009
  jax.config.update("jax_enable_compilation_cache", False)
  # JAX looks at the setting once.
  compilation_cache.reset_cache()
  try:
    yield
  finally:
    jax.config.update("jax_enable_compilation_cache", was)
    compilation_cache.reset_cache()


def figures(compiled: jax.stages.Compiled) -> dict[str, Any]:
  """Bytes and FLOPs of one chip, and the collectives of one chip by kind.

  The collectives are None where JAX cannot read the program.
  """
  stats: Any = compiled.memory_analysis()
  found = {
    name: getattr(stats, f"{key}_size_in_bytes")
    for name, key in {
      "arguments": "argument", "outputs": "output", "aliased": "alias",
      "temporaries": "temp", "code": "generated_code",
    }.items()
  }  # fmt: skip
  found["total"] = (
    found["arguments"] + found["outputs"] - found["aliased"]
    + found["temporaries"]
  )  # fmt: skip
  peak = getattr(stats, "peak_memory_in_bytes", 0)
  cost: Any = compiled.cost_analysis() or {}
  return found | {
    "peak": peak or None,
    "flops": cost.get("flops"),
    "collectives": collectives(text) if (text := _text(compiled)) else None,
  }


def _text(compiled: jax.stages.Compiled) -> str | None:
  """A program's HLO; None where a libtpu newer than JAX has HLO of its own."""
  try:
    return compiled.as_text()
  except jax.errors.JaxRuntimeError as error:
    if "async-update instruction" not in str(error):
      raise
    return None


def collectives(text: str) -> dict[str, dict[str, int]]:
  """Kind -> how many a compiled program has, and the bytes of their results.

  A collective inside a loop counts once.
  """
  found: dict[str, dict[str, int]] = {}
  for result, kind, begun in _COLLECTIVE.findall(text):
    sizes = [_bytes(*one) for one in _ARRAY.findall(result)]
    # What is begun of these holds its argument too, and the larger is moved.
    both = begun and kind not in ("all-reduce",)
    one = found.setdefault(kind, {"count": 0, "bytes": 0})
    one["count"] += 1
    one["bytes"] += max(sizes, default=0) if both else sum(sizes)
  return found


def _bytes(dtype: str, shape: str) -> int:
  if dtype == "pred":
    bits = 8
  elif bits_ := _BITS.search(dtype):
    bits = int(bits_[0])
  else:
    return 0
  return math.prod(int(n) for n in shape.split(",") if n) * bits // 8
