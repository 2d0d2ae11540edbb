"""Full disks, a read-only folder, two runs in one folder: every verb, compared.

  python benchmarks/stops.py --work=/tmp/stops
  python benchmarks/faults.py --work=/tmp/stops --out=faults.json

It compares with the runs that `stops` left alone in `--work`, and mounts disks
in memory, so root must run it. A run gets a disk that holds a part of what it
writes. It must fail, name the file, and mark nothing as done. On a larger disk
the same command must end with what the run left alone has. The finished folder
is made read-only: a start must be refused at once. Two starts at once in a new
folder must end as one, and refuse the other. Every fault adds a line to
`faults.jsonl`; started again, the script goes on with the cases that are left.
"""

import datetime
import json
import pathlib
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import app, flags
from stops_runs import CASES, STUDY, Case, contents, differences, start

from unlearning_jax import durable

WORK = flags.DEFINE_string("work", None, "The folder of `stops`.")
OUT = flags.DEFINE_string("out", None, "Where the JSON record goes.")
ONLY = flags.DEFINE_list("only", [], "Cases; all if none is named.")
PATIENCE_S = 600
# Of what the finished run holds.
PARTS = (0.1, 0.4, 0.8)


def mount(folder: pathlib.Path, *options: str):
  """Mounts a disk in memory, or mounts it anew with other options."""
  joined = ",".join(options)
  command = ["mount", "-t", "tmpfs", "-o", joined, "none", str(folder)]
  subprocess.run(command, check=True)


def ended(
  case: Case, folder: pathlib.Path, starts: int = 1
) -> tuple[list[int], str]:
  """Starts a run, maybe more than once, to its end: statuses, what is said."""
  log = folder.with_suffix(".log")
  log.unlink(missing_ok=True)
  running = [one for _ in range(starts) for one in start(case, folder)]
  statuses = [one.wait(PATIENCE_S) for one in running]
  return statuses, log.read_text(errors="replace")


def is_done(folder: pathlib.Path) -> bool:
  """Whether a run says that it has ended."""
  return (folder / "DONE").exists() or (folder / "model").exists()


def said(text: str, words: str) -> str:
  """The first line of a log that has some words; "" for none."""
  lines = (line for line in text.splitlines() if words in line)
  return next(lines, "")[:300]


def full(
  case: Case, folder: pathlib.Path, whole: pathlib.Path
) -> Iterator[dict[str, Any]]:
  """Runs on ever larger disks; the last one is large enough."""
  used = sum(path.stat().st_blocks * 512 for path in whole.rglob("*"))
  for part in (*PARTS, 20):
    remount = ["remount"] if folder.is_mount() else []
    mount(folder, *remount, f"size={int(part * used)}")
    statuses, text = ended(case, folder)
    line = {
      "fault": "full disk",
      "of_what_it_writes": part,
      "statuses": statuses,
      "done": is_done(folder),
    }
    if part > 1:
      found = differences(contents(whole), contents(folder))
      yield line | {"fault": "room again", "differences": [*found][:20]}
    else:
      names_file = said(text, "No space left on device")
      yield line | {"said": names_file, "way": said(text, "make room")}


def faults(
  name: str, case: Case, work: pathlib.Path
) -> Iterator[dict[str, Any]]:
  """Everything that is done to a case."""
  whole, folder = work / "whole" / name, work / "faults" / name
  twice = work / "twice" / name
  for old in (folder, twice):
    shutil.rmtree(old, ignore_errors=True)
    old.mkdir(parents=True)
  try:
    yield from full(case, folder, whole)
    mount(folder, "remount", "ro")
    began = time.monotonic()
    statuses, text = ended(case, folder)
    yield {
      "fault": "read-only",
      "statuses": statuses,
      "said": said(text, "ead-only") or said(text, "writ"),
      "seconds": round(time.monotonic() - began, 1),
    }
  finally:
    subprocess.run(["umount", str(folder)], check=True)
  if case.processes == 1:
    statuses, text = ended(case, twice, 2)
    yield {
      "fault": "two at once",
      "statuses": statuses,
      "said": said(text, "is being written by another run"),
      "differences": [*differences(contents(whole), contents(twice))][:20],
    }


def is_as_promised(line: Mapping[str, Any]) -> bool:
  """Whether a fault ended as it must."""
  bad = bool(line.get("differences"))
  if line["fault"] == "room again":
    return not bad and not any(line["statuses"])
  if line["fault"] == "two at once":
    # The workers of a sweep share its folder.
    wanted = [0, 0] if line["case"] == "sweep" else [0, 1]
    alone = line["case"] == "sweep" or line["said"]
    return not bad and sorted(line["statuses"]) == wanted and bool(alone)
  failed = all(line["statuses"]) and bool(line["said"])
  return failed and not line.get("done") and line.get("way", "-") != ""


def concluded(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """The record."""
  return {
    "cases": len({line["case"] for line in lines}),
    "faults": len(lines),
    "other_than_promised": [one for one in lines if not is_as_promised(one)],
    "lines": lines,
    "python": platform.python_version(),
    "command": " ".join(["python", *sys.argv]),
    "date": datetime.date.today().isoformat(),
  }


def main(_):
  """Runs the cases that are left, and writes the record."""
  work = pathlib.Path(WORK.value)
  (work / "study.py").write_text(STUDY)
  writer = durable.JsonLines(work / "faults.jsonl")
  lines = [line for one in writer.read() for line in one["lines"]]
  known = {line["case"] for line in lines}
  for name in ONLY.value or CASES:
    if name in known:
      continue
    found = []
    for line in faults(name, CASES[name], work):
      found.append({"case": name, **line})
      print(found[-1], flush=True)
    writer.append({"lines": found}, what=name)
    lines += found
  if OUT.value:
    text = json.dumps(concluded(lines), indent=1)
    pathlib.Path(OUT.value).write_text(text + "\n")


if __name__ == "__main__":
  app.run(main)
