"""One line that shows how far a stage is and when it will end."""

import contextlib
import sys
import time
from typing import TextIO

from unlearning_jax import stops


class Progress:
  """Prints `erase  30/120  2.1/s  eta 0:43  compile 8.2 s` to stderr.

  On a terminal the line is rewritten in place. In a log file a new line is
  printed every few seconds at most. The last line is always printed.

  Args:
    label: the stage's name.
    total: the number of its items.
    done: items finished before this start; the rate leaves them out.
    stream: where to print; None is stderr.
    every_s: seconds between lines; None is 0.2 on a terminal and 5 elsewhere.
    quiet: True prints nothing.
  """

  def __init__(
    self,
    label: str,
    total: int,
    *,
    done: int = 0,
    stream: TextIO | None = None,
    every_s: float | None = None,
    quiet: bool = False,
  ):
    self._label = label
    self._total = total
    self._done = self._resumed_at = done
    self._stream = stream or sys.stderr
    self._in_place, self._quiet = self._stream.isatty(), quiet
    if every_s is None:
      every_s = 0.2 if self._in_place else 5.0
    self._every_s = every_s
    self._started = self._printed = time.monotonic()
    self._width = 0
    self.compile_s = 0.0

  @property
  def run_s(self) -> float:
    """Seconds since the start, without those spent on compilation."""
    return time.monotonic() - self._started - self.compile_s

  @property
  def rate(self) -> float:
    """Items per second of this start, without compilation."""
    return (self._done - self._resumed_at) / max(self.run_s, 1e-9)

  def update(self, count: int = 1, note: str = ""):
    """Counts finished items; `note`, such as a loss, ends the line.

    Raises:
      Stopped: see `stops.check`.
    """
    self._done += count
    stops.check()
    if time.monotonic() - self._printed >= self._every_s:
      self._print(note)

  @contextlib.contextmanager
  def compiling(self):
    """Counts the seconds inside as compilation."""
    start = time.monotonic()
    try:
      yield
    finally:
      self.compile_s += time.monotonic() - start

  def line(self) -> str:
    """The line as it would be printed now."""
    parts = [self._label, f"{self._done}/{self._total}", f"{self.rate:.3g}/s"]
    left = self._total - self._done
    if left > 0 and self.rate > 0:
      parts.append(f"eta {_clock(left / self.rate)}")
    elif left <= 0:
      parts.append(f"took {_clock(self.run_s)}")
    if self.compile_s:
      parts.append(f"compile {self.compile_s:.1f} s")
    return "  ".join(parts)

  def _print(self, note: str = "", end: str = "\r"):
    if self._quiet:
      return
    line = f"{self.line()}  {note}".rstrip()
    self._printed = time.monotonic()
    if self._in_place:
      # Spaces wipe the rest of a longer line.
      print(line.ljust(self._width), end=end, file=self._stream, flush=True)
      self._width = len(line)
    else:
      print(line, file=self._stream, flush=True)

  def __enter__(self) -> "Progress":
    return self

  def __exit__(self, *error: object):
    self._print(end="\n")


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours}:{minutes:02}:{seconds:02}"
  return f"{minutes}:{seconds:02}"
