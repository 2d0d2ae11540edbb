"""Leases: which of several workers does a piece of work.

Workers share a folder and nothing else. A worker that takes a piece creates the
file `<name>.<number>`, which only one can. It appends a byte to the file every
few seconds. When a file stops growing, its worker is dead, and another takes
the piece over with the next number. Files are never removed, so the highest
number is always the last worker's. No clock of one machine is compared with
that of another.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator

# Two or three beats may be lost before a worker counts as dead.
BEAT_S, DEAD_S = 20.0, 120.0
_BEAT, _ENDED = b".", b"x"


class LostError(BaseException):
  """Another worker has taken the piece over, or may have.

  No `except Exception` takes it for a failure of the piece.
  """


class Leases:
  """The leases in a folder, as one worker sees them.

  Args:
    folder: the folder that all workers share; it is made if it does not exist.
    beat_s: seconds between two signs of life.
    dead_s: seconds without one after which a worker counts as dead.
    clock: seconds that never go back.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    *,
    beat_s: float = BEAT_S,
    dead_s: float = DEAD_S,
    clock: Callable[[], float] = time.monotonic,
  ):
    if not 0 < beat_s < dead_s / 2:
      raise ValueError(
        f"leases: beat_s={beat_s}: must be above 0 and below half of dead_s="
        f"{dead_s}"
      )
    folder.mkdir(parents=True, exist_ok=True)
    self.beat_s, self.dead_s, self.clock = beat_s, dead_s, clock
    self._folder = folder
    # File -> its size when it was first seen, and when that was.
    self._seen: dict[pathlib.Path, tuple[int, float]] = {}

  def take(self, name: str) -> "Lease | None":
    """Takes a piece that nobody holds; None where a living worker holds it.

    Args:
      name: of the piece, a file name without a dot.
    """
    number = self._last(name)
    if number and not self._is_over(self._folder / f"{name}.{number}"):
      return None
    path = self._folder / f"{name}.{number + 1}"
    try:
      return Lease(self, path, self._folder / f"{name}.{number + 2}")
    except FileExistsError:
      return None

  def _last(self, name: str) -> int:
    """The number of the last worker that took a piece; 0 for none."""
    found = self._folder.glob(f"{name}.*")
    return max((int(path.suffix[1:]) for path in found), default=0)

  def _is_over(self, path: pathlib.Path) -> bool:
    """Whether the worker has left the piece, or is dead."""
    # Opening a file asks the server of a network's file system anew.
    with open(path, "rb") as file:
      text = file.read()
      if text.endswith(_ENDED):
        return True
      # The system drops the lock of a process that dies. Only on its own
      # machine is that sure to be seen.
      if _is_here(text) and _is_unlocked(file.fileno()):
        return True
    size, since = self._seen.get(path, (-1, 0.0))
    if size != len(text):
      self._seen[path] = len(text), self.clock()
      return False
    return self.clock() - since > self.dead_s


class Lease:
  """A piece that this worker holds.

  Raises:
    FileExistsError: another worker was faster.
  """

  def __init__(self, leases: Leases, path: pathlib.Path, next_: pathlib.Path):
    self._leases, self._next = leases, next_
    self._lock = threading.Lock()
    mode = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
    self._file: int | None = os.open(path, mode, 0o644)
    self._lost = False
    with contextlib.suppress(OSError):
      # Some file systems have no locks; there the beats alone decide.
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    # Only now, so that whoever reads it finds the lock.
    os.write(self._file, _header())
    os.fsync(self._file)
    self._beaten = leases.clock()

  def beat(self):
    """Gives a sign of life, unless it comes too late."""
    with self._lock:
      if self._file is None or self._is_late():
        return
      os.write(self._file, _BEAT)
      # Other machines see it only once the server has it.
      os.fsync(self._file)
      self._beaten = self._leases.clock()

  def check(self):
    """Raises if the piece may be another worker's by now.

    Raises:
      LostError: this worker was silent for too long, or was taken for dead.
    """
    with self._lock:
      late = self._is_late()
    if late or self._next.exists():
      self._lost = True
      raise LostError(
        f"{self._next.stem}: this worker was silent for too long, so another "
        "has taken it over, or may have"
      )

  def _is_late(self) -> bool:
    # One beat early, so that it gives up before others see it dead.
    most = self._leases.dead_s - self._leases.beat_s
    self._lost = self._lost or self._leases.clock() - self._beaten > most
    return self._lost

  def release(self):
    """Leaves the piece to whoever comes next."""
    with self._lock:
      if self._file is not None:
        # Without the mark, it counts as dead in a while.
        with contextlib.suppress(OSError):
          if not self._lost:
            os.write(self._file, _ENDED)
        with contextlib.suppress(OSError):
          os.close(self._file)
        self._file = None

  @contextlib.contextmanager
  def beating(self) -> Iterator["Lease"]:
    """Beats from a thread while inside, and releases at the end."""
    ended = threading.Event()

    def beat():
      while not ended.wait(self._leases.beat_s):
        # A full disk or a server that restarts may be back at the next beat.
        with contextlib.suppress(OSError):
          self.beat()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
      yield self
    finally:
      ended.set()
      thread.join()
      self.release()


def _header() -> bytes:
  who = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
  return json.dumps({"who": who, "boot": _boot()}).encode() + b"\n"


def _boot() -> str:
  """A mark of this start of this machine; "" where the system has none."""
  file = pathlib.Path("/proc/sys/kernel/random/boot_id")
  return file.read_text().strip() if file.exists() else ""


def _is_here(text: bytes) -> bool:
  """Whether the worker that wrote a lease runs, or ran, on this machine."""
  try:
    boot = json.loads(text.partition(b"\n")[0])["boot"]
  except (ValueError, KeyError):
    return False  # It is being written.
  return bool(boot) and boot == _boot()


def _is_unlocked(file: int) -> bool:
  """Whether nobody holds a lock on an open file."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError:
    return False
  fcntl.flock(file, fcntl.LOCK_UN)
  return True
