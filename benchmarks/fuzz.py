"""Feeds damaged files to every reader of a user's files.

  pip install hypothesis
  python benchmarks/fuzz.py --minutes=60 --out=benchmarks/results/fuzz.json

Small files of our own and other tools' writers are damaged by `fuzz_damage`,
and read by the loaders of `fuzz_files`. An input is refused by a ValueError or
an OSError that names the file, or it is read. Anything else is a fault: another
exception, a command that runs, a file written elsewhere, more than 5 seconds of
the CPU, or more memory than three times the files and 128 MiB. hypothesis makes
the damage of a fault small. The record is written as it goes, and the next
start goes on from it: it tries the known faults again and says which are
mended. `--loaders=a,b` names some; `--list` prints all.
"""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import logging
import os
import pathlib
import platform
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Iterator
from typing import Any

import fuzz_damage
import fuzz_files
import fuzz_weights
from absl import app, flags
from absl import logging as absl_logging

OUT = flags.DEFINE_string("out", None, "Where the JSON record goes.")
MINUTES = flags.DEFINE_float("minutes", 60, "How long, all loaders together.")
ONLY = flags.DEFINE_list("loaders", [], "Those to feed; all if none.")
LIST = flags.DEFINE_bool("list", False, "Print the loaders.")
SLICE = flags.DEFINE_float("slice", 20, "Seconds of a loader's turn.")
RUNS = flags.DEFINE_string("runs", "", "A folder that keeps the sample runs.")
_CPU_S, _WALL_S = 5, 15
# A picture of 16 million pixels, which any file may claim, and its copy.
_SPARE = 128 << 20
_MOST_LETTERS = 20_000
_PACKAGES = ("hypothesis", "numpy", "safetensors", "pillow", "jax", "torch")
# What a reader has no business with; `open` is looked at apart.
_DOINGS = (
  "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen",
  "socket.connect", "socket.getaddrinfo", "pty.spawn", "webbrowser.open",
)  # fmt: skip


class Slow(BaseException):
  """Raised in a loader that takes too long; no `except Exception` has it."""


class Fault(Exception):
  """What a loader did that it must not, in a line that names the place."""


class Watch:
  """Notices what a loader does beside reading.

  Attributes:
    root: the folder that it may write to; None while nobody watches.
    seen: what it did.
  """

  def __init__(self):
    self.root: str | None = None
    self.seen: list[str] = []
    sys.addaudithook(self._hear)
    for one in (signal.SIGPROF, signal.SIGALRM):
      signal.signal(one, self._ring)

  def _ring(self, *_: object):
    raise Slow()

  def _hear(self, event: str, args: tuple[Any, ...]):
    if self.root is None:
      return
    # A start asks git for the commit of this code.
    if event in _DOINGS and args[:1] != ("git",):
      self.seen.append(f"{event} {args[:1]}")
    elif event == "open" and args[2] is not None:
      writes = args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
      path = os.fsdecode(args[0]) if isinstance(args[0], str | bytes) else ""
      inside = path.startswith((self.root, "/dev/null", tempfile.gettempdir()))
      if writes and path and not inside and not path.endswith(".pyc"):
        self.seen.append(f"wrote {path}")

  @contextlib.contextmanager
  def watching(self, root: pathlib.Path) -> Iterator[None]:
    """Watches what is done inside."""
    self.seen, self.root = [], str(root)
    signal.setitimer(signal.ITIMER_PROF, _CPU_S)
    signal.setitimer(signal.ITIMER_REAL, _WALL_S)
    try:
      yield
    finally:
      signal.setitimer(signal.ITIMER_PROF, 0)
      signal.setitimer(signal.ITIMER_REAL, 0)
      self.root = None


def _memory(key: str) -> int:
  for line in pathlib.Path("/proc/self/status").read_text().splitlines():
    if line.startswith(key):
      return int(line.split()[1]) << 10
  return 0


def _place(error: BaseException) -> str:
  """The last line of ours that an error passed."""
  ours = [
    frame
    for frame in traceback.extract_tb(error.__traceback__)
    if "unlearning_jax" in frame.filename or "launch" in frame.filename
  ]
  if not ours:
    return "?"
  name = ours[-1].filename.rpartition("unlearning_jax/")[2]
  return f"{name}:{ours[-1].name}"


def _is_short(error: BaseException | None) -> bool:
  """Whether memory ran out on the way to an error."""
  while error is not None:
    if isinstance(error, MemoryError):
      return True
    error = error.__cause__ or error.__context__
  return False


@dataclasses.dataclass
class Feeder:
  """Feeds one loader, and keeps what came of it.

  Attributes:
    loader: what is fed.
    files: its whole files.
    root: the folder in which they stand.
    watch: who looks on.
    whole: what came of the files before they were damaged.
  """

  loader: fuzz_weights.Loader
  files: fuzz_damage.Files
  root: pathlib.Path
  watch: Watch
  whole: str = "read"

  def tried(self, damages: list[fuzz_damage.Damage]) -> str:
    """Reads damaged files: `read`, `refused`, or else a fault.

    Raises:
      Fault: see the module.
    """
    files = fuzz_damage.damaged(self.files, damages)
    _write(self.root, files)
    size = sum(len(x) for x in files.values() if isinstance(x, bytes))
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before, found = _memory("VmRSS"), "read"
    try:
      with self.watch.watching(self.root):
        self.loader.read(self.root)
    except (ValueError, OSError) as error:
      found = "refused"
      self._check(error)
    except Slow as error:
      raise Fault(f"slow at {_place(error)}") from error
    except Exception as error:
      name = type(error).__name__
      raise Fault(f"{name} at {_place(error)}: {str(error)[:100]}") from error
    grown = _memory("VmHWM") - before
    if grown > 3 * size + _SPARE:
      raise Fault(f"memory: {grown >> 20} MiB of {size >> 10} KiB")
    if self.watch.seen:
      raise Fault(f"did {self.watch.seen[0]}")
    return found

  def _check(self, error: Exception):
    """Refuses an error that does not say where it is."""
    said = str(error)
    names = [str(self.root), *self.files]
    names += [pathlib.PurePath(name).name for name in self.files]
    if _is_short(error):
      raise Fault(f"out of memory at {_place(error)}") from error
    if len(said) > _MOST_LETTERS:
      raise Fault(f"message of pages at {_place(error)}") from error
    if self.loader.named and not any(n in said for n in names):
      raise Fault(f"unnamed at {_place(error)}: {said[:100]}") from error

  def feed(self, seed: int, seconds: float, tally: dict[str, Any]):
    """Feeds it for a while; `tally` gets the counts and the faults."""
    import hypothesis
    from hypothesis import strategies as st

    open_ = (one for one in tally["faults"] if not one.get("mended"))
    known = {_kind(one["fault"]) for one in open_}
    end, last = time.monotonic() + seconds, []
    number = st.integers(0, (1 << 16) - 1)
    one = st.tuples(st.sampled_from(fuzz_damage.KINDS), number, number, number)

    @hypothesis.seed(seed)
    @hypothesis.settings(
      max_examples=100_000, deadline=None, database=None,
      suppress_health_check=list(hypothesis.HealthCheck),
      report_multiple_bugs=False,
      phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
    )  # fmt: skip
    @hypothesis.given(st.lists(one, min_size=1, max_size=4))
    def fed(damages: list[fuzz_damage.Damage]):
      if time.monotonic() > end and not last:
        raise KeyboardInterrupt
      tally["tried"] += 1
      try:
        tally[self.tried(damages)] += 1
      except Fault as fault:
        if _kind(str(fault)) in known:
          return
        if last and _kind(str(fault)) != _kind(last[-1][0]):
          return
        last.append((str(fault), damages))
        raise

    try:
      with contextlib.suppress(KeyboardInterrupt, Fault):
        fed()
    except hypothesis.errors.Flaky:
      # Slow beside other work, and not when it was tried again.
      fault, damages = last.pop()
      once = {"fault": fault, "damages": damages}
      tally.setdefault("not_again", []).append(once)
      last.clear()
    if last:
      fault, damages = last[-1]
      tally["faults"].append({"fault": fault, "damages": damages})
      print(f"{self.loader.name}: {fault}\n  {damages}", flush=True)


def _kind(fault: str) -> str:
  """A fault without what differs from input to input."""
  return fault.partition(": ")[0]


def _write(root: pathlib.Path, files: fuzz_damage.Files):
  """Writes files into an empty folder."""
  if root.exists():
    shutil.rmtree(root)
  root.mkdir(parents=True)
  for name, content in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
      path.write_bytes(content)
    elif content == fuzz_damage.PIPE:
      os.mkfifo(path)
    elif content == fuzz_damage.LOOP:
      path.symlink_to(path.name)
    else:
      path.mkdir()


def _read_all(root: pathlib.Path) -> fuzz_damage.Files:
  return {
    path.relative_to(root).as_posix(): path.read_bytes()
    for path in sorted(root.rglob("*"))
    if path.is_file()
  }


def _feeders(scratch: pathlib.Path, watch: Watch) -> dict[str, Feeder]:
  """A feeder for each loader, whose whole files are read once."""
  found = {}
  for loader in fuzz_files.loaders(RUNS.value or str(scratch / "runs")):
    if ONLY.value and loader.name not in ONLY.value:
      continue
    made = scratch / "whole"
    made.mkdir()
    loader.make(made)
    feeder = Feeder(loader, _read_all(made), scratch / "in", watch)
    shutil.rmtree(made)
    # Imports what reading needs. Some whole files are refused on purpose: the
    # record says which.
    _write(feeder.root, feeder.files)
    try:
      loader.read(feeder.root)
    except Exception as error:
      feeder.whole = f"refused: {str(error)[-100:]}"
    found[loader.name] = feeder
  return found


def _again(feeder: Feeder, tally: dict[str, Any]):
  """Tries the known faults again."""
  for one in tally["faults"]:
    try:
      feeder.tried([tuple(damage) for damage in one["damages"]])
      one["mended"] = True
    except Fault as fault:
      one["fault"], one["mended"] = str(fault), False
  # A fault that is back is found again.
  open_ = [one for one in tally["faults"] if not one["mended"]]
  print(f"{feeder.loader.name}: {len(open_)} of {len(tally['faults'])} open")


def _save(record: dict[str, Any]):
  tallies = record["loaders"].values()
  for key in ("tried", "read", "refused"):
    record[key] = sum(one[key] for one in tallies)
  record["faults"] = sum(len(one["faults"]) for one in tallies)
  out = pathlib.Path(OUT.value)
  part = out.with_suffix(".part")
  part.write_text(json.dumps(record, indent=2) + "\n")
  part.replace(out)


def main(_):
  """Feeds every loader in turn until the time is up."""
  if LIST.value:
    return print(*(one.name for one in fuzz_files.loaders("")), sep="\n")
  warnings.simplefilter("ignore")
  logging.disable(logging.CRITICAL)
  absl_logging.set_verbosity(absl_logging.FATAL)
  out = pathlib.Path(OUT.value)
  record: dict[str, Any] = {"seconds": 0.0, "rounds": 0, "loaders": {}}
  if out.exists():
    record = json.loads(out.read_text())
  record["versions"] = {p: importlib.metadata.version(p) for p in _PACKAGES}
  record["versions"]["python"] = platform.python_version()
  record["date"] = datetime.date.today().isoformat()
  with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
    # Nothing else may be written.
    private = pathlib.Path(scratch) / "private"
    private.mkdir()
    tempfile.tempdir = str(private)
    feeders = _feeders(pathlib.Path(scratch), Watch())
    # A reader that asks for the whole machine fails, and not the machine.
    most = _memory("VmSize") + (4 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    for name, feeder in feeders.items():
      empty = {"tried": 0, "read": 0, "refused": 0, "faults": []}
      tally = record["loaders"].setdefault(name, empty)
      tally["whole"] = feeder.whole
      _again(feeder, tally)
    _save(record)
    end = time.monotonic() + 60 * MINUTES.value
    while time.monotonic() < end:
      # The one that has had least comes first, also after a restart.
      for name in sorted(feeders, key=lambda n: record["loaders"][n]["tried"]):
        feeder = feeders[name]
        began = time.monotonic()
        left = min(SLICE.value, end - began)
        if left > 0:
          seed = zlib.crc32(f"{name} {record['rounds']}".encode())
          feeder.feed(seed, left, record["loaders"][name])
          record["seconds"] += time.monotonic() - began
          _save(record)
      record["rounds"] += 1
  print(f"{record['tried']} inputs, {record['faults']} faults")


if __name__ == "__main__":
  flags.mark_flag_as_required("out")
  app.run(main)
