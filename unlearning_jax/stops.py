"""A signal to stop, and where the run obeys it.

A scheduler sends SIGTERM (`launch.slurm`'s early notice is SIGUSR2), and
Ctrl-C SIGINT. Whatever is recorded row by row drops the row in flight. Training
finishes its step and keeps its state, see `finishing`. A second signal ends the
process at once.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

from jax.experimental import multihost_utils

# EX_TEMPFAIL: start the same command again.
STATUS = 75
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class Stopped(SystemExit):
  """A signal asked the run to stop; its record is whole."""

  def __init__(self):
    super().__init__(STATUS)


class _Notice:
  """The signals that this process has had."""

  asked = False
  # How many steps in flight want to be finished first.
  finishing = 0
  # Whether JAX spreads the SIGTERM of one process to all.
  shared = False


def listen(*, shared: bool = False):
  """From now on, a signal stops the run; call it after joining the others.

  Args:
    shared: whether JAX's own handler tells all processes of the SIGTERM of one.
  """
  _Notice.shared = shared
  for number in SIGNALS:
    if not (shared and number == signal.SIGTERM):
      signal.signal(number, _told)


def _told(number: int, _: Any):
  if _Notice.shared:
    # All processes stop after the same step, so JAX has to tell them.
    os.kill(os.getpid(), signal.SIGTERM)
    for each in {*SIGNALS} - {signal.SIGTERM}:
      signal.signal(each, signal.SIG_DFL)
    return
  for each in SIGNALS:
    signal.signal(each, signal.SIG_DFL)
  _Notice.asked = True
  if not _Notice.finishing:
    raise Stopped()


@contextlib.contextmanager
def finishing() -> Iterator[None]:
  """Inside, a signal is only noted: poll `asked`; the end raises `Stopped`."""
  _Notice.finishing += 1
  try:
    yield
  finally:
    _Notice.finishing -= 1
  check()


def check():
  """Raises `Stopped` if a signal came and was lost; call it after a row.

  Python ignores what is raised in a callback of its collector, so a signal that
  comes there stops nothing.
  """
  if _Notice.asked and not _Notice.finishing:
    raise Stopped()


def asked(step: int) -> bool:
  """Whether to keep what there is after this step, and raise `Stopped`.

  Args:
    step: all processes of the run call this after every step. They all get
      True after the same one.
  """
  if _Notice.shared:
    reached = multihost_utils.reached_preemption_sync_point(step)
    # JAX says it once.
    _Notice.asked = _Notice.asked or reached
  return _Notice.asked
