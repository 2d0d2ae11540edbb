"""Stops runs of many verbs at random, and compares with runs left alone.

  python benchmarks/stops.py --work=/tmp/stops --out=stops.json

Each case is a verb in the Shapes world, in one process or two. A run of it is
left alone. Another is stopped up to four times, by SIGKILL, SIGTERM and SIGINT
in turn, and then started until it ends. A stop comes in the first half of what
is usual, so that it finds the run: at a random instant, or in a third of the
stops just after a write to a file began. The run must leave what the first
left: rows, numbers, edits, images, tables. Every stop adds a line to
`stops.jsonl` in `--work`; started again, the script goes on after the last run
that was compared, and does not count what was stopped after it.
"""

import collections
import ctypes
import datetime
import json
import os
import pathlib
import platform
import random
import select
import shutil
import signal
import struct
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import app, flags
from stops_runs import CASES, STUDY, Case, contents, differences, start

from unlearning_jax import durable

WORK = flags.DEFINE_string("work", None, "Where runs and lines go.")
OUT = flags.DEFINE_string("out", None, "Where the JSON record goes.")
STOPS = flags.DEFINE_integer("stops", 100, "How many.")
ONLY = flags.DEFINE_list("only", [], "Cases; all if none is named.")

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# A process notices the death of another within a minute.
PATIENCE_S = 600


class Writes:
  """Hears, by inotify, of every file below a folder that is written."""

  MODIFY, CREATE, FOLDER = 0x2, 0x100, 0x40000000

  def __init__(self, folder: pathlib.Path):
    self._libc = ctypes.CDLL(None, use_errno=True)
    self._file = self._libc.inotify_init1(os.O_NONBLOCK)
    folder.mkdir(parents=True, exist_ok=True)
    self._names: dict[int, str] = {}
    self._heard: collections.deque[str] = collections.deque()
    self._add(str(folder))

  def _add(self, folder: str):
    mask = self.MODIFY | self.CREATE
    mark = self._libc.inotify_add_watch(self._file, folder.encode(), mask)
    self._names[mark] = folder
    for below in filter(os.path.isdir, map(str, _children(folder))):
      self._add(below)

  def next(self, seconds: float) -> str | None:
    """The next file that is written; None if none is in so many seconds."""
    until = time.monotonic() + seconds
    while not self._heard:
      left = until - time.monotonic()
      if left <= 0 or not select.select([self._file], [], [], left)[0]:
        return None
      data = os.read(self._file, 1 << 16)
      while data:
        mark, kind, _, size = struct.unpack("iIII", data[:16])
        path = os.path.join(
          self._names.get(mark, ""),
          data[16 : 16 + size].split(b"\0")[0].decode(),
        )
        data = data[16 + size :]
        if kind & self.CREATE and kind & self.FOLDER:
          self._add(path)
        elif kind & (self.CREATE | self.MODIFY):
          self._heard.append(path)
    return self._heard.popleft()

  def close(self):
    """Stops to listen."""
    os.close(self._file)


def _children(folder: str) -> list[pathlib.Path]:
  try:
    return [*pathlib.Path(folder).iterdir()]
  except OSError:
    return []


def left_alone(case: Case, folder: pathlib.Path) -> dict[str, Any]:
  """Runs a case to its end: its seconds of writing, and how often it wrote."""
  watch, began, count = Writes(folder), 0.0, 0
  running = start(case, folder)
  while any(one.poll() is None for one in running):
    if watch.next(1) is not None:
      began, count = began or time.monotonic(), count + 1
  while watch.next(0) is not None:
    count += 1
  watch.close()
  statuses = [one.wait() for one in running]
  assert not any(statuses), (folder, statuses)
  return {"seconds": time.monotonic() - began, "writes": count}


def stopped(
  case: Case,
  folder: pathlib.Path,
  number: int,
  usual: Mapping[str, Any],
  draw: random.Random,
) -> dict[str, Any]:
  """Starts a run and stops it; says when, how, and its statuses."""
  watch = Writes(folder)
  running = start(case, folder)
  sent, writing = SIGNALS[number % 3], number // 3 % 3 == 0

  def next_write() -> str | None:
    found = None
    while found is None and any(one.poll() is None for one in running):
      found = watch.next(1)
    return found

  wrote = next_write()
  began = time.monotonic()
  if writing:
    for _ in range(draw.randrange(max(1, int(usual["writes"] * 0.5)))):
      wrote = next_write()
  else:
    time.sleep(draw.uniform(0, 0.5 * usual["seconds"]))
  after_s = round(time.monotonic() - began, 2)
  # A scheduler asks all processes; what dies is often one.
  alone = sent == signal.SIGKILL and number % 2
  aimed = [one for one in running[: 1 if alone else None] if one.poll() is None]
  for one in aimed:
    one.send_signal(sent)
  watch.close()
  statuses = [one.wait(PATIENCE_S) for one in running]
  return {
    "signal": sent.name,
    "while_writing": wrote and os.path.relpath(wrote, folder) if writing
    else None,
    "after_s": after_s,
    "processes_hit": len(aimed),
    "statuses": statuses,
    "done": (folder / "DONE").exists() or (folder / "model").exists(),
    "took_s": round(time.monotonic() - began, 1),
  }  # fmt: skip


def round_of(
  name: str,
  case: Case,
  work: pathlib.Path,
  usual: Mapping[str, Any],
  first: int,
  most: int,
) -> Iterator[dict[str, Any]]:
  """Stops one run, lets it end, compares; yields a line for each."""
  draw, folder = random.Random(f"{name} {first}"), work / "cut" / name
  shutil.rmtree(folder, ignore_errors=True)
  for number in range(first, first + most):
    line = stopped(case, folder, number, usual, draw)
    yield {"case": name, "round": first, "number": number, **line}
    if not any(line["statuses"]):
      break
  statuses = [one.wait(PATIENCE_S) for one in start(case, folder)]
  try:
    whole, cut = contents(work / "whole" / name), contents(folder)
    found = [*differences(whole, cut)]
  except ValueError as error:
    # A row that stands twice, or a damaged file.
    found = [f"the record cannot be read: {error}"]
  if found or any(statuses):
    kept = work / "different" / f"{name} {first}"
    shutil.copytree(folder, kept, dirs_exist_ok=True)
    shutil.copy(folder.with_suffix(".log"), kept.with_suffix(".log"))
  yield {
    "case": name, "round": first, "ended": statuses, "differences": found[:20]
  }  # fmt: skip


def allowed(line: Mapping[str, Any], case: Case) -> bool:
  """Whether the statuses of a stop are those that are promised."""
  statuses = [*line["statuses"]]
  if line["signal"] == "SIGKILL":
    hit = statuses[: line["processes_hit"]]
    return hit == [-9] * len(hit) and (line["done"] or 0 not in statuses)
  if case.verb == "convert":
    # It keeps nothing, so it does not listen.
    return statuses in ([-signal.SIGTERM], [-signal.SIGINT], [1])
  if not any(statuses):
    # It had ended already. A matrix has no DONE of its own.
    return line["done"] or case.verb == "attack_matrix"
  # JAX ends one that is in a collective with another that has left.
  others = {75} if case.processes == 1 else {75, -signal.SIGABRT}
  return {*statuses} <= others and 75 in statuses


def concluded(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """The record: what was stopped, and what differed."""
  kept, pending = [], list[Mapping[str, Any]]()
  for line in lines:
    if "ended" in line:
      # Those of a round that was cut were compared with nothing.
      same = [one for one in pending if _round(one) == _round(line)]
      kept += [*same, line]
      pending = []
    else:
      pending.append(line)
  # Other runs had ended before the signal was sent.
  stops = [one for one in kept if one.get("processes_hit")]
  ends = [one for one in kept if "ended" in one]
  return {
    "stops": len(stops),
    "by_signal": collections.Counter(one["signal"] for one in stops),
    "while_writing": sum(one["while_writing"] is not None for one in stops),
    "by_case": collections.Counter(one["case"] for one in stops),
    "runs_compared": len(ends),
    "runs_that_differ": [one for one in ends if one["differences"]],
    "runs_that_did_not_end_well": [one for one in ends if any(one["ended"])],
    "other_statuses": [
      one for one in stops if not allowed(one, CASES[one["case"]])
    ],
    "python": platform.python_version(),
    "command": " ".join(["python", *sys.argv]),
    "date": datetime.date.today().isoformat(),
  }


def _round(line: Mapping[str, Any]) -> tuple[Any, ...]:
  return line["case"], line["round"]


def main(_):
  """Runs what is left, and writes the record."""
  # A shell in the background has its children ignore it.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  work = pathlib.Path(WORK.value)
  work.mkdir(parents=True, exist_ok=True)
  (work / "study.py").write_text(STUDY)
  log, known = work / "stops.jsonl", work / "usual.json"
  lines = [*durable.JsonLines(log).read()]
  usual = json.loads(known.read_text()) if known.exists() else {}
  writer, done = durable.JsonLines(log), concluded(lines)["stops"]
  asked = ONLY.value or list(CASES)
  # Others read its edit.
  for name in dict.fromkeys(["uce", *asked]):
    if name not in usual:
      shutil.rmtree(work / "whole" / name, ignore_errors=True)
      usual[name] = left_alone(CASES[name], work / "whole" / name)
      known.write_text(json.dumps(usual))
  while done < STOPS.value:
    for name in asked:
      case, number = CASES[name], sum("signal" in one for one in lines)
      for line in round_of(name, case, work, usual[name], number, 4):
        print(line, flush=True)
        writer.append(line, what="stop")
        lines.append(line)
      done = concluded(lines)["stops"]
      if done >= STOPS.value:
        break
  text = json.dumps(concluded(lines), indent=1)
  print(text)
  if OUT.value:
    pathlib.Path(OUT.value).write_text(text + "\n")


if __name__ == "__main__":
  app.run(main)
