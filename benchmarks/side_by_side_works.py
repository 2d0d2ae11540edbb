"""What `side_by_side` starts: one side of a group of works, in its process.

  python benchmarks/side_by_side_works.py float32 fast 4 0 /tmp/folder

prints a line of JSON: of each work the CPU seconds of a call, the most memory
that the process had so far, and the version of what computed. A side whose
package is not installed says so instead. The last two arguments are the core,
-1 for any, and a folder for files. `side_by_side` sets the environment.
"""

import importlib.util
import json
import os
import pathlib
import resource
import statistics
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

import side_by_side_networks as networks
import side_by_side_others as others

# Side -> the packages that compute, the first ones named in the record.
PACKAGES = {
  "fast": ("jax",),
  "exact": ("jax",),
  "ours": ("jax",),
  "eager": ("torch", "diffusers"),
  "compiled": ("torch", "diffusers"),
  "plain": ("torch", "transformers"),
  "package": ("nudenet", "onnxruntime"),
}
OURS = ("fast", "exact", "ours")
MOST_CALLS = 9


def works(group: str, side: str, folder: pathlib.Path) -> networks.Works:
  """The works of a group, as a side computes them."""
  ours = side in OURS
  if group == "shapes":
    return (networks.shapes_ours if ours else networks.shapes_peer)(side)
  if group in ("float32", "bfloat16"):
    return (
      networks.unet_ours(group, side) if ours else networks.unet_peer(group)
    )
  if group == "rece":
    return others.rece_ours() if ours else others.rece_peer()
  if group == "nudenet":
    return others.nudenet_ours() if ours else others.nudenet_peer()
  if group == "reading":
    return (others.reading_ours if ours else others.reading_peer)(folder)
  return others.start(side)


def cpu_seconds() -> float:
  """CPU seconds of this process and of those it waited for."""
  # `os.times` counts hundredths of a second.
  both = map(
    resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  )
  return sum(used.ru_utime + used.ru_stime for used in both)


def timed(prepare: Callable[[], Callable[[], Any]]) -> float:
  """CPU seconds of a call; preparing it is not counted."""
  call = prepare()
  begun = cpu_seconds()
  call()
  return cpu_seconds() - begun


def measure(
  group: str, side: str, seconds: float, folder: pathlib.Path
) -> dict[str, Any]:
  """Of each work the CPU seconds of calls after the first, one at least."""
  packages = PACKAGES[side]
  missing = [name for name in packages if not importlib.util.find_spec(name)]
  if missing:
    return {"missing": f"not installed: {', '.join(missing)}"}
  version = " ".join(f"{n} {metadata.version(n)}" for n in packages)
  known: dict[Any, float] = {}
  found = {}
  for work, prepare in works(group, side, folder):
    if prepare not in known:
      timed(prepare)
      taken = [timed(prepare)]
      while sum(taken) < seconds and len(taken) < MOST_CALLS:
        taken.append(timed(prepare))
      known[prepare] = statistics.median(taken)
    # What is imported at the start is in a process of its own.
    who = resource.RUSAGE_CHILDREN if group == "start" else resource.RUSAGE_SELF
    kibibytes = resource.getrusage(who).ru_maxrss
    found[work] = {
      "seconds": known[prepare],
      "peak_gib": kibibytes / 2**20,
      "version": version,
    }
  return found


def main():
  """Computes on one core what the arguments name."""
  group, side, seconds, core, folder = sys.argv[1:]
  if int(core) >= 0:
    # Before anything counts cores to start a thread on each.
    os.sched_setaffinity(0, {int(core)})
  print(json.dumps(measure(group, side, float(seconds), pathlib.Path(folder))))


if __name__ == "__main__":
  main()
