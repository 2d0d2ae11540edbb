"""The progress line: what it says, and how often."""

import io

import pytest

from unlearning_jax.record import progress


class Clock:
  def __init__(self):
    self.now = 100.0

  def monotonic(self):
    return self.now


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(progress, "time", clock)
  return clock


def test_compile_time_is_told_apart(clock):
  with progress.Progress("erase", 40, done=10, stream=io.StringIO()) as line:
    with line.compiling():
      clock.now += 8
    clock.now += 2
    line.update(4)
    assert line.line() == "erase  14/40  2/s  eta 0:13  compile 8.0 s"
    clock.now += 3600
    line.update(26)
    assert line.rate == pytest.approx(30 / 3602)
  assert (
    line.line().startswith("erase  40/40") and "took 1:00:02" in line.line()
  )


def test_a_log_file_gets_a_line_every_few_seconds_and_the_last(clock):
  stream = io.StringIO()
  with progress.Progress("x", 100, stream=stream) as line:
    for _ in range(100):
      clock.now += 0.125
      line.update(note="loss 0.5")
  lines = stream.getvalue().splitlines()
  assert len(lines) == 3, lines
  assert lines[0] == "x  40/100  8/s  eta 0:08  loss 0.5"
  assert lines[-1] == "x  100/100  8/s  took 0:12"


def test_a_terminal_gets_one_line_rewritten(clock):
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  stream = Terminal()
  with progress.Progress("x", 2, stream=stream) as line:
    clock.now += 1
    line.update(note="a long note")
    clock.now += 1
    line.update()
  assert stream.getvalue().count("\n") == 1
  first, second, _ = stream.getvalue().split("\r")
  assert first.endswith("a long note") and second.startswith("x  2/2")
  assert len(second) == len(first), "the longer line must be wiped"


def test_an_error_still_ends_the_line(clock):
  stream = io.StringIO()
  with pytest.raises(RuntimeError):
    with progress.Progress("x", 2, stream=stream):
      raise RuntimeError
  assert stream.getvalue() == "x  0/2  0/s\n"
