"""Times this package and its peers side by side, on one thread of a CPU.

  make bench
  python benchmarks/side_by_side.py --works="shapes 8,unet float32" --out=x.json

Every side runs in a fresh process, one after the other, and all of that again:
A B A B. A ratio is the peer's CPU seconds by ours of the same round, so it is
above 1 where ours is faster. CPU seconds of a busy machine still vary by a
tenth; ratio_min and ratio_max say by how much they did. A peer that is not
installed has no ratio, and its row says so.
"""

import datetime
import json
import os
import pathlib
import statistics
import subprocess
import sys
from typing import Any

from absl import app, flags

# Work -> unit, peers.
WORKS = {
  "shapes 1": ("a picture of 15 steps, alone", ("eager", "compiled")),
  "shapes 8": ("8 pictures of 15 steps, at once", ("eager", "compiled")),
  "shapes 32": ("32 pictures of 15 steps, at once", ("eager", "compiled")),
  "unet float32": ("SD 1.4's UNet, a row, forward", ("eager",)),
  "unet bfloat16": ("SD 1.4's UNet, a row, forward", ("eager",)),
  "gradient float32": ("SD 1.4's UNet, a row, to the text", ("eager",)),
  "start": ("import of what draws pictures", ("eager",)),
}
OURS = ("fast", "exact")
OUT = flags.DEFINE_string("out", None, "Where the JSON record goes.")
ASKED = flags.DEFINE_list("works", list(WORKS), "What is timed.")
ROUNDS = flags.DEFINE_integer("rounds", 2, "Times that each side runs.")
SECONDS = flags.DEFINE_float("seconds", 4.0, "CPU seconds of a side's calls.")
# Also where there is a GPU.
ONE_THREAD = {
  "JAX_PLATFORMS": "cpu",
  "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
  "OMP_NUM_THREADS": "1",
  "OPENBLAS_NUM_THREADS": "1",
}
WORKER = pathlib.Path(__file__).with_name("side_by_side_works.py")
ROOT = WORKER.parents[1]


def processor() -> str:
  """The processor's name, where the system says it."""
  path = pathlib.Path("/proc/cpuinfo")
  lines = path.read_text().splitlines() if path.is_file() else []
  named = (x.partition(":")[2] for x in lines if x.startswith("model name"))
  return next(named, "unknown").strip()


def run(work: str, side: str) -> dict[str, Any]:
  """What one side measured in a process of its own."""
  done = subprocess.run(
    [sys.executable, WORKER, work, side, str(SECONDS.value)],
    env={**os.environ, **ONE_THREAD, "PYTHONPATH": str(ROOT)},
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
  work: str, kernels: str, peer: str, ours: list[dict], theirs: list[dict]
) -> dict[str, Any]:
  """One line of the record: ours beside one peer."""
  missing = [x["missing"] for x in (*ours, *theirs) if "missing" in x]
  found: dict[str, Any] = {
    "work": work,
    "unit": WORKS[work][0],
    "kernels": kernels,
    "peer_name": peer,
    "cpu": processor(),
    "threads": 1,
  }
  if missing:
    return {**found, "missing": missing[0]}
  ratios = [b["seconds"] / a["seconds"] for a, b in zip(ours, theirs, strict=1)]

  def middle(side: list[dict], key: str) -> float:
    return statistics.median(x[key] for x in side)

  return {
    **found,
    "ours": middle(ours, "seconds"),
    "peer": middle(theirs, "seconds"),
    "ours_first": middle(ours, "first"),
    "peer_first": middle(theirs, "first"),
    "ours_gib": middle(ours, "peak_gib"),
    "peer_gib": middle(theirs, "peak_gib"),
    "version": ours[0]["version"],
    "peer_version": theirs[0]["version"],
    "ratio_min": min(ratios),
    "ratio_median": statistics.median(ratios),
    "ratio_max": max(ratios),
  }


def printed(one: dict[str, Any]) -> str:
  """A row as a line of a table."""
  name = f"{one['work']:18} {one['kernels']:6} {one['peer_name']:9}"
  if "missing" in one:
    return f"{name} {one['missing']}"
  return (
    f"{name} {one['ours']:8.3f} {one['peer']:8.3f} {one['ratio_median']:6.2f} "
    f"({one['ratio_min']:.2f} to {one['ratio_max']:.2f}) "
    f"{one['ours_gib']:5.1f} {one['peer_gib']:5.1f}"
  )


def rounded(value: Any) -> Any:
  """The value, a float with four digits."""
  return float(f"{value:.4g}") if isinstance(value, float) else value


def main(_: list[str]):
  """Times each work; prints its rows, and writes after each if asked."""
  if unknown := [work for work in ASKED.value if work not in WORKS]:
    raise ValueError(f"works={unknown[0]!r}; allowed: {', '.join(WORKS)}")
  rows: list[dict[str, Any]] = []
  print("work, kernels, peer: ours and peer in CPU s, ratio, GiB of each")
  for work in ASKED.value:
    peers = WORKS[work][1]
    # Nothing computes while a program starts.
    ours = OURS[:1] if work == "start" else OURS
    taken: dict[str, list[dict]] = {side: [] for side in (*ours, *peers)}
    for _ in range(ROUNDS.value):
      for side in taken:
        taken[side].append(run(work, side))
    for kernels in ours:
      for peer in peers:
        rows.append(row(work, kernels, peer, taken[kernels], taken[peer]))
        print(printed(rows[-1]), flush=True)
    if OUT.value:
      document = {
        "what": (__doc__ or "").splitlines()[0],
        "date": datetime.date.today().isoformat(),
        "load": os.getloadavg(),
        "rows": [{k: rounded(v) for k, v in one.items()} for one in rows],
      }
      path = pathlib.Path(OUT.value)
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
  app.run(main)
