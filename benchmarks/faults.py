"""Runs every verb under faults of the machine; compares with runs left alone.

  python benchmarks/faults.py --work=/tmp/faults --out=faults.json

It mounts small disks, so it needs Linux and root. The runs are those of
`stops`, one process each. Each verb meets four faults:

- `full`: a disk too small for the run. Every start must say which file found no
  room and what to do, and leave no DONE. With room, the next start ends.
- `read_only`: an empty folder, and that of the finished run. Both are refused.
- `twice`: two starts in one folder. One must run and the other name the folder.
  Two starts of a sweep share its cells instead. A conversion keeps its output
  for itself only while it writes, so two may run one after the other.
- `clock`: a run is stopped and its clock is set back by a day. The next start
  ends.

Where a run ends, it must leave what the run left alone has left. Each fault
adds a line to `faults.jsonl` in `--work`; started again, the script goes on.
"""

import contextlib
import datetime
import json
import os
import pathlib
import platform
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import stops
from absl import app, flags
from stops_runs import CASES, STUDY, Case, contents, differences, start

from unlearning_jax import durable

FAULTS = flags.DEFINE_list("faults", [], "Which; all if none is named.")

# Parts of what the whole run takes: one disk is full at its rows, one at its
# pictures, one at its page.
PARTS = (0.1, 0.4, 0.7, 0.95)
DAY_S = 24 * 3600
BLOCK = 4096
WAY_OUT = "the disk is full: make room, and the same command goes on"
AHEAD = f"""
import time
_s, _ns = time.time, time.time_ns
time.time = lambda: _s() + {DAY_S}
time.time_ns = lambda: _ns() + {DAY_S} * 10**9
"""


@contextlib.contextmanager
def disk(folder: pathlib.Path) -> Iterator[Callable[[str], None]]:
  """A small disk at a folder; yields what mounts it with other options."""
  folder.mkdir(parents=True)

  def mount(options: str):
    again = "remount," if folder.is_mount() else ""
    command = ["mount", "-t", "tmpfs", "-o", again + options, "none"]
    subprocess.run([*command, str(folder)], check=True)

  try:
    yield mount
  finally:
    if folder.is_mount():
      subprocess.run(["umount", "--lazy", folder], check=True)


def size(folder: pathlib.Path) -> int:
  """The bytes that a folder takes on a disk, in whole blocks."""
  files = (path for path in folder.rglob("*") if path.is_file())
  return sum(-(-path.stat().st_size // BLOCK) * BLOCK for path in files)


def started(case: Case, folder: pathlib.Path, count: int = 1) -> dict[str, Any]:
  """Starts a run once or several times at once, and waits for the ends."""
  log, began = folder.with_suffix(".log"), time.monotonic()
  before = log.stat().st_size if log.exists() else 0
  running = [one for _ in range(count) for one in start(case, folder)]
  statuses = [one.wait(stops.PATIENCE_S) for one in running]
  said = log.read_bytes()[before:].decode(errors="replace")
  # The paragraph that the script ends with.
  ends = re.findall(r"^error: .*(?:\n(?!\(--traceback).*)*", said, re.MULTILINE)
  return {
    "statuses": sorted(statuses),
    "seconds": round(time.monotonic() - began, 1),
    "done": is_done(folder),
    "said": ends[-1] if ends else said[-600:] if any(statuses) else "",
  }


def is_done(folder: pathlib.Path) -> bool:
  """Whether a folder holds a run, or a model, that looks whole."""
  return (folder / "DONE").exists() or (folder / "model").exists()


def compared(whole: pathlib.Path, folder: pathlib.Path) -> list[str]:
  """How what a run left differs from what the run left alone has left."""
  try:
    return [*differences(contents(whole), contents(folder))][:20]
  except ValueError as error:
    return [f"the record cannot be read: {error}"]


def full(case: Case, folder: pathlib.Path, whole: pathlib.Path):
  """Starts on disks that are too small, then on one with room."""
  needed, found = size(whole), []
  with disk(folder) as mount:
    for part in PARTS:
      mount(f"size={max(1, int(needed * part) // BLOCK) * BLOCK}")
      line = started(case, folder)
      names = f"{folder}/" in line["said"]
      good = names and WAY_OUT in line["said"] and not line["done"]
      found.append({"part": part, **line, "good": good})
      if line["statuses"] == [0]:
        found[-1]["good"] = False
        break
    mount(f"size={20 * needed}")
    line = started(case, folder)
    left = compared(whole, folder)
    found.append({**line, "good": line["statuses"] == [0], "differences": left})
    mount("ro")
    return [
      *found,
      refused(case, folder) | {"folder": "that of a finished run"},
    ]


def refused(case: Case, folder: pathlib.Path) -> dict[str, Any]:
  """Starts in a folder that cannot be written."""
  line = started(case, folder)
  good = line["statuses"] == [1] and re.search(
    rf"{re.escape(str(folder))}.*(cannot be written|not writable)", line["said"]
  )
  return {**line, "good": bool(good)}


def read_only(case: Case, folder: pathlib.Path, whole: pathlib.Path):
  """Starts in an empty folder that cannot be written."""
  del whole
  with disk(folder) as mount:
    mount("ro")
    return [refused(case, folder)]


def twice(case: Case, folder: pathlib.Path, whole: pathlib.Path):
  """Starts two runs in one folder at once."""
  folder.mkdir(parents=True)
  line = started(case, folder, 2)
  said = re.search(rf"{re.escape(str(folder))}.* another run", line["said"])
  good = line["statuses"] == [0, 1] and bool(said)
  if case.verb in ("sweep", "convert"):
    good = good or line["statuses"] == [0, 0]
  return [{**line, "good": good, "differences": compared(whole, folder)}]


def clock(case: Case, folder: pathlib.Path, whole: pathlib.Path):
  """Stops a run that a day ahead has begun, and goes on today."""
  ahead = folder.with_name(f"{folder.name}.ahead")
  ahead.mkdir(parents=True, exist_ok=True)
  (ahead / "sitecustomize.py").write_text(AHEAD)
  known = os.environ.get("PYTHONPATH")
  os.environ["PYTHONPATH"] = f"{ahead}:{known}" if known else str(ahead)
  usual = json.loads((whole.parents[1] / "usual.json").read_text())
  try:
    # Stop 1 of `stops.stopped` is by SIGTERM, while a file is written.
    cut = stops.stopped(
      case, folder, 1, usual[whole.name], random.Random(folder.name)
    )
  finally:
    os.environ.pop("PYTHONPATH")
    if known:
      os.environ["PYTHONPATH"] = known
  for path in [folder, *folder.rglob("*")]:
    then = path.stat().st_mtime + DAY_S
    os.utime(path, (then, then))
  line = started(case, folder)
  return [
    {"statuses": cut["statuses"], "while_writing": cut["while_writing"],
     "good": stops.allowed(cut, case)},
    {**line, "good": line["statuses"] == [0],
     "differences": compared(whole, folder)},
  ]  # fmt: skip


def concluded(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """The record: what each verb did, and what is wrong."""
  # A fault that was tried again counts once.
  last = {(one["case"], one["fault"]): one for one in lines}
  wrong = [
    {**one, "starts": bad}
    for one in last.values()
    if (
      bad := [
        start
        for start in one["starts"]
        if not start["good"] or start.get("differences")
      ]
    )
  ]
  return {
    "verbs": sorted({case for case, _ in last}),
    "faults": {
      fault: sum(one["fault"] == fault for one in last.values())
      for fault in KINDS
    },
    "starts": sum(len(one["starts"]) for one in last.values()),
    "runs_compared": sum(
      "differences" in start for one in last.values() for start in one["starts"]
    ),
    "wrong": wrong,
    "refused_within_s": max(
      (one["starts"][-1]["seconds"] for (_, fault), one in last.items()
       if fault == "read_only"), default=None
    ),
    "lines": [*last.values()],
    "python": platform.python_version(),
    "command": " ".join(["python", *sys.argv]),
    "date": datetime.date.today().isoformat(),
  }  # fmt: skip


KINDS = {one.__name__: one for one in (full, read_only, twice, clock)}


def main(_):
  """Runs what is left, and writes the record."""
  work = pathlib.Path(stops.WORK.value or "faults")
  work.mkdir(parents=True, exist_ok=True)
  (work / "study.py").write_text(STUDY)
  log, known = work / "faults.jsonl", work / "usual.json"
  lines, writer = [*durable.JsonLines(log).read()], durable.JsonLines(log)
  usual = json.loads(known.read_text()) if known.exists() else {}
  alone = [name for name, case in CASES.items() if case.processes == 1]
  for name in alone:
    if name not in usual:
      shutil.rmtree(work / "whole" / name, ignore_errors=True)
      usual[name] = stops.left_alone(CASES[name], work / "whole" / name)
      known.write_text(json.dumps(usual))
  tried = {(one["case"], one["fault"]) for one in lines}
  for name in stops.ONLY.value or alone:
    for fault in FAULTS.value or KINDS:
      if (name, fault) in tried:
        continue
      folder = work / fault / name
      shutil.rmtree(folder, ignore_errors=True)
      found = KINDS[fault](CASES[name], folder, work / "whole" / name)
      text = json.dumps(found).replace(str(work), "WORK")
      line = {"case": name, "fault": fault, "starts": json.loads(text)}
      print(json.dumps(line, indent=1), flush=True)
      writer.append(line, what="fault")
      lines.append(line)
  record = concluded(lines)
  print(json.dumps(record["wrong"], indent=1))
  if stops.OUT.value:
    text = json.dumps(record, indent=1)
    pathlib.Path(stops.OUT.value).write_text(text + "\n")


if __name__ == "__main__":
  app.run(main)
