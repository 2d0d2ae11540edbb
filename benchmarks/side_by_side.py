"""Times this package and its peers side by side, each on one core of a CPU.

  make bench
  python benchmarks/side_by_side.py --groups=shapes,rece --out=x.json

A group of works shares its weights. Every side of a group runs in a fresh
process, one after the other, and all of that again: A B A B. A ratio is the
peer's CPU seconds by ours of the same round, so it is above 1 where ours is
faster. Two groups run at once where there are two cores and 20 GB of memory,
each on a core of its own. Where the rounds' ratios lie more than a tenth apart,
the row says how far. A peer that is not installed has no ratio, and its row
says so. Compiled programs are kept in `.cache/` and loaded again.
"""

import datetime
import json
import os
import pathlib
import queue
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent import futures
from typing import Any, NamedTuple

from absl import app, flags


class Group(NamedTuple):
  """Works that share weights, and who computes them."""

  units: dict[str, str]
  peers: tuple[str, ...] = ("eager",)
  ours: tuple[str, ...] = ("ours",)


# The longest first: what is left for the end is short.
GROUPS = {
  "float32": Group(
    {
      "unet float32": "SD 1.4's UNet, a row, forward",
      "gradient float32": "SD 1.4's UNet, a row, to the text",
    },
    ours=("fast", "exact"),
  ),
  "shapes": Group(
    {
      "shapes 1": "a picture of 15 steps, alone",
      "shapes 8": "8 pictures of 15 steps, at once",
      "shapes 32": "32 pictures of 15 steps, at once",
    },
    peers=("eager", "compiled"),
    ours=("fast", "exact"),
  ),
  "bfloat16": Group(
    {"unet bfloat16": "SD 1.4's UNet, a row, forward"}, ours=("fast",)
  ),
  "rece": Group(
    {
      "rece first": "nudity recipe at SD 1.4's size, a model's first edit",
      "rece further": "the same, a further edit of the model",
    },
    peers=("plain",),
  ),
  "reading": Group({"reading": "a file of 4.3 GB read and converted"}),
  "nudenet": Group({"nudenet": "16 pictures of 512 px"}, peers=("package",)),
  "start": Group({"start": "import of what draws pictures"}),
}
OUT = flags.DEFINE_string("out", None, "Where the JSON record goes.")
ASKED = flags.DEFINE_list("groups", list(GROUPS), "What is timed.")
ROUNDS = flags.DEFINE_integer("rounds", 2, "Times that each side runs.")
SECONDS = flags.DEFINE_float("seconds", 3.0, "CPU seconds of a side's calls.")
WORKER = pathlib.Path(__file__).with_name("side_by_side_works.py")
ROOT = WORKER.parents[1]
CACHE = ROOT / ".cache"
# The gradient of a large UNet holds 11 GB, and another group as much as 6.
TWO_AT_ONCE_GB = 20
NOISY = 1.1


def environment() -> dict[str, str]:
  """One thread, no GPU where there is one, compiled programs kept."""
  kept = {
    "JAX_COMPILATION_CACHE_DIR": str(CACHE / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "TORCHINDUCTOR_CACHE_DIR": str(CACHE / "inductor"),
  }
  alone = {
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "PYTHONPATH": str(ROOT),
  }
  return {**kept, **os.environ, **alone}


def cores() -> list[int]:
  """The cores that compute at once, two at most; -1 where none can be named."""
  if not hasattr(os, "sched_getaffinity"):
    return [-1]
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  count = 2 if memory >= TWO_AT_ONCE_GB * 1e9 else 1
  return sorted(os.sched_getaffinity(0))[:count]


def processor() -> str:
  """The processor's name, where the system says it."""
  path = pathlib.Path("/proc/cpuinfo")
  lines = path.read_text().splitlines() if path.is_file() else []
  named = (x.partition(":")[2] for x in lines if x.startswith("model name"))
  return next(named, "unknown").strip()


def run(group: str, side: str, core: int, folder: str) -> dict[str, Any]:
  """What one side measured of each work, in a process of its own."""
  arguments = [group, side, str(SECONDS.value), str(core), folder]
  done = subprocess.run(
    [sys.executable, WORKER, *arguments],
    env=environment(),
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  if done.returncode:
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return {"missing": f"failed: {last[:200]}"}
  return json.loads(done.stdout.splitlines()[-1])


def row(
  work: str, unit: str, names: tuple[str, str], ours: list, theirs: list
) -> dict[str, Any] | None:
  """One line of the record; None where a side does not compute the work.

  Args:
    names: of our kernels and of the peer.
    ours: what our side measured in each round, see `run`.
    theirs: the same of the peer.
  """
  found: dict[str, Any] = {
    "work": work,
    "unit": unit,
    "kernels": names[0],
    "peer_name": names[1],
    "cpu": processor(),
    "threads": 1,
  }
  rounds = [*theirs, *ours]
  if missing := [x["missing"] for x in rounds if "missing" in x]:
    return {**found, "missing": missing[0]}
  if any(work not in x for x in rounds):
    return None
  ours, theirs = ([x[work] for x in side] for side in (ours, theirs))
  ratios = [b["seconds"] / a["seconds"] for a, b in zip(ours, theirs, strict=1)]
  apart = max(ratios) / min(ratios)
  found |= {
    "ours": statistics.median(x["seconds"] for x in ours),
    "peer": statistics.median(x["seconds"] for x in theirs),
    "ours_gib": max(x["peak_gib"] for x in ours),
    "peer_gib": max(x["peak_gib"] for x in theirs),
    "version": ours[0]["version"],
    "peer_version": theirs[0]["version"],
    "ratio_min": min(ratios),
    "ratio_median": statistics.median(ratios),
    "ratio_max": max(ratios),
  }
  noise = f"the rounds lie {apart - 1:.0%} apart"
  return {**found, "noisy": noise} if apart > NOISY else found


def printed(one: dict[str, Any]) -> str:
  """A row as a line of a table."""
  name = f"{one['work']:17} {one['kernels']:6} {one['peer_name']:9}"
  if "missing" in one:
    return f"{name} {one['missing']}"
  return (
    f"{name} {one['ours']:8.3f} {one['peer']:8.3f} {one['ratio_median']:6.2f} "
    f"({one['ratio_min']:.2f} to {one['ratio_max']:.2f}) "
    f"{one['ours_gib']:5.1f} {one['peer_gib']:5.1f}  {one.get('noisy', '')}"
  )


def rows_of(group: str, free: queue.Queue[int]) -> list[dict[str, Any]]:
  """Times a group on a core that is free, and prints its rows."""
  units, peers, ours = GROUPS[group]
  taken: dict[str, list[dict]] = {side: [] for side in (*ours, *peers)}
  core = free.get()
  with tempfile.TemporaryDirectory() as folder:
    for _ in range(ROUNDS.value):
      for side in taken:
        taken[side].append(run(group, side, core, folder))
  free.put(core)
  rows = [
    row(work, unit, (kernels, peer), taken[kernels], taken[peer])
    for work, unit in units.items()
    for kernels in ours
    for peer in peers
  ]
  rows = [one for one in rows if one]
  print("\n".join(map(printed, rows)), flush=True)
  return rows


def rounded(value: Any) -> Any:
  """The value, a float with four digits."""
  return float(f"{value:.4g}") if isinstance(value, float) else value


def write(rows: list[dict[str, Any]], seconds: float, at_once: int) -> None:
  """Writes the record, where it is asked for."""
  if not OUT.value:
    return
  document = {
    "what": (__doc__ or "").splitlines()[0],
    "date": datetime.date.today().isoformat(),
    "load": os.getloadavg(),
    "wall_seconds": round(seconds),
    # Of the processes that ended.
    "cpu_seconds": round(sum(os.times()[2:4])),
    "groups_at_once": at_once,
    "rows": [{k: rounded(v) for k, v in one.items()} for one in rows],
  }
  path = pathlib.Path(OUT.value)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(document, indent=1) + "\n")


def main(_: list[str]):
  """Times each group; prints its rows, and writes after each if asked."""
  if unknown := [name for name in ASKED.value if name not in GROUPS]:
    raise ValueError(f"groups={unknown[0]!r}; allowed: {', '.join(GROUPS)}")
  begun, found = time.monotonic(), {}
  free: queue.Queue[int] = queue.Queue()
  at_once = cores()
  for core in at_once:
    free.put(core)
  print("work, kernels, peer: ours and peer in CPU s, ratio, GiB of each")
  with futures.ThreadPoolExecutor(len(at_once)) as pool:
    waited = {pool.submit(rows_of, name, free): name for name in ASKED.value}
    for done in futures.as_completed(waited):
      found[waited[done]] = done.result()
      rows = [one for name in GROUPS for one in found.get(name, ())]
      write(rows, time.monotonic() - begun, len(at_once))
  print(f"{time.monotonic() - begun:.0f} s, {len(at_once)} groups at once")


if __name__ == "__main__":
  app.run(main)
