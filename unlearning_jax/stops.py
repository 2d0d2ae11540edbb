"""A signal to stop, and where the run obeys it.

A scheduler sends SIGTERM (`launch.slurm`'s early notice is SIGUSR2), and
Ctrl-C SIGINT. Whatever is recorded row by row drops the row in flight. Training
finishes its step and keeps its state, see `finishing`. A second signal ends the
process at once. A run that has `ended` keeps its status.
"""

import contextlib
import ctypes
import signal
from collections.abc import Callable, Iterator
from types import FrameType

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

  heard = False
  # Whether the others have been asked to agree on a step.
  said = False
  # Whether all processes have agreed on the step to stop after.
  agreed = False
  # How many steps in flight want to be finished first.
  finishing = 0
  # JAX's own handler of SIGTERM, by which all hear of the signal of one.
  to_all: Callable[[int], object] | None = None


def listen(*, shared: bool = False):
  """From now on, a signal stops the run; call it after joining the others.

  Args:
    shared: whether all processes must stop after the same step, as JAX's own
      handler of SIGTERM lets them. Outside of steps, each stops by itself at
      the next `check`.

  Raises:
    RuntimeError: JAX has no such handler.
  """
  _Notice.to_all = _handler(signal.SIGTERM) if shared else None
  if shared and _Notice.to_all is None:
    raise RuntimeError("JAX hears no SIGTERM: processes would stop one by one")
  for number in SIGNALS:
    signal.signal(number, _told)


def ended():
  """The run has ended: while Python ends too, no signal changes its status.

  Python would take its handlers off before it is gone, and die of the signal.
  Should Python not end, only SIGKILL ends it.
  """
  for number in SIGNALS:
    signal.signal(number, signal.SIG_IGN)


def _handler(number: int) -> Callable[[int], object] | None:
  """A signal's handler in C, of which Python does not know; takes it off."""
  # POSIX's own function gives the address of the handler that it replaces.
  swap = ctypes.CDLL(None).signal
  swap.argtypes, swap.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
  address = swap(number, None)
  # 1 ignores the signal.
  if address in (None, 1):
    return None
  return ctypes.CFUNCTYPE(None, ctypes.c_int)(address)


def _told(number: int, _: FrameType | None):
  del number
  for each in SIGNALS:
    signal.signal(each, signal.SIG_DFL)
  _Notice.heard = True
  if _Notice.finishing:
    _tell_all()
  elif _Notice.to_all is None:
    raise Stopped()


def _tell_all():
  """Has all processes agree on a step, where steps are shared.

  Only within steps: elsewhere JAX's agreement is never reached, and a process
  that leaves meanwhile was seen to hang until the others were ended.
  """
  if _Notice.to_all is not None and not _Notice.said:
    _Notice.said = True
    _Notice.to_all(signal.SIGTERM)


@contextlib.contextmanager
def finishing() -> Iterator[None]:
  """Inside, a signal is only noted: poll `asked`; the end raises `Stopped`."""
  _Notice.finishing += 1
  try:
    yield
  finally:
    _Notice.finishing -= 1
  # Where steps are shared, the others may need this process after them.
  if _Notice.to_all is None:
    check()


def check():
  """Raises `Stopped` if a signal came; call it after a row and while waiting.

  Where steps are shared, nothing else stops the run outside of them. Elsewhere
  the signal itself does, unless it comes in a callback of Python's collector,
  which ignores what is raised.
  """
  if _Notice.heard and not _Notice.finishing:
    raise Stopped()


def asked(step: int) -> bool:
  """Whether to keep what there is after this step, and raise `Stopped`.

  Args:
    step: all processes of the run call this after every step. They all get
      True after the same one.
  """
  if _Notice.to_all is None:
    return _Notice.heard
  if _Notice.heard:
    # The signal came before the steps began.
    _tell_all()
  # JAX says it once.
  reached = multihost_utils.reached_preemption_sync_point(step)
  _Notice.agreed = _Notice.agreed or reached
  return _Notice.agreed
