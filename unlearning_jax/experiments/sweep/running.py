"""Runs the cells that a worker holds: each alone, or some of a kind at once."""

import contextlib
import functools
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

import jax
from absl import logging

from unlearning_jax import durable, settings
from unlearning_jax.experiments import cells, common
from unlearning_jax.experiments.sweep import figures, folder, table, verbs
from unlearning_jax.experiments.sweep.grid import Cell
from unlearning_jax.record import Workdir, leases, tracking


class Held:
  """The cells that a worker holds.

  Attributes:
    store: what has become of cells.
    tried: cells that the worker does not take again.
    leases: of the cells that it holds, or has held.
    track: trackers that hear of every cell.
  """

  def __init__(self, store: folder.Store, track: Sequence[str]):
    self.store, self.track = store, track
    self.tried: set[Cell] = set()
    self.leases: dict[Cell, leases.Lease] = {}


class _Run:
  """A cell's run, as this worker records it.

  Attributes:
    trackers: a context that ends them.
  """

  def __init__(self, verb: str, held: Held, cell: Cell):
    self.cell, self._verb, self._held = cell, verb, held
    self._lease = held.leases[cell]
    self._path, self._is_over = held.store.folder(cell), False
    self.trackers = contextlib.ExitStack()

  @functools.cached_property
  def _record(self) -> Any:
    own = verbs.find(self._verb)
    record = common.workdir(
      str(self._path), settings.plain(self.cell.given), own.settings,
      alone=True, guard=self._lease.check,
    )  # fmt: skip
    record, trackers = tracking.tracked(record, self._held.track)
    for one in trackers:
      self.trackers.callback(self._end, one)
    return record

  def _end(self, tracker: tracking.Tracker):
    found = figures.read(self._verb, self._path)
    named = {name: one["value"] for name, one in found.items()}
    tracker.end(self.cell.values, named)

  def opened(self) -> Any:
    """The record, opened once, of which the trackers hear."""
    return self._record

  @contextlib.contextmanager
  def failing(self) -> Generator[None, None, None]:
    """Records an error of the cell's own; other cells go on."""
    with cells.failing(self._held.store, self.cell), self.leaving():
      yield

  @contextlib.contextmanager
  def leaving(self) -> Generator[None, None, None]:
    """Leaves the cell to another worker that has it, or to the next start."""
    try:
      try:
        yield
      except Exception:
        # Whatever goes wrong after another worker has come is no failure.
        self._lease.check()
        raise
      self._lease.check()
    # Only texts are logged: a traceback would keep the record and arrays alive.
    except (leases.LostError, durable.BusyError) as error:
      why, name = str(error), self.cell.id
      logging.warning("cell %s is left to another worker: %s", name, why)
      self._held.tried.discard(self.cell)
    except (jax.errors.JaxRuntimeError, durable.DamagedError) as error:
      why, name = str(error), self.cell.id
      logging.warning("cell %s: the next start tries again: %s", name, why)
      self._is_over = True

  def is_over(self) -> bool:
    """Whether this worker does nothing more of it."""
    failed = self.cell in self._held.store.failed
    return self._is_over or failed or self.cell not in self._held.tried

  def end(self, rest: Callable[[], object], seconds: float = 0.0):
    """Does the rest of the run, tells the trackers, and keeps what it cost.

    Args:
      rest: what is left to do.
      seconds: its share of what was done before.
    """
    started = time.monotonic()
    with self.trackers:
      rest()
      is_done = _is_done(self._record)
    self._lease.check()
    if not is_done:
      logging.warning("cell %s: the next start tries again", self.cell.id)
      return
    seconds += time.monotonic() - started
    with durable.replacing(self._path / table.COST) as file:
      file.write(durable.to_json({"seconds": seconds}, "cost").encode())


def run(verb: str, held: Held, some: Sequence[Cell]):
  """Runs a cell, or cells of one kind together."""
  own = verbs.find(verb)
  for cell in some:
    print(f"cell {cell.id}: {cell.said}", flush=True)
  runs = [_Run(verb, held, cell) for cell in some]

  def whole(one: _Run) -> Callable[[], object]:
    return functools.partial(own.run, one.cell.given, one.opened, one.cell.edit)

  if len(runs) == 1:
    with runs[0].leaving():
      runs[0].end(whole(runs[0]))
    return
  rest: Sequence[verbs.Rest] = [whole(one) for one in runs]
  started = time.monotonic()
  with contextlib.ExitStack() as trackers:
    for one in runs:
      trackers.enter_context(one.trackers)
    with _shared(some):
      assert own.pack is not None
      rest = own.pack.begin(
        [verbs.Packed(one.cell.given, one.opened, one.failing) for one in runs]
      )
    each = (time.monotonic() - started) / len(runs)
    for one, left in zip(runs, rest, strict=True):
      if left is not None and not one.is_over():
        with one.failing():
          one.end(left, each)


@contextlib.contextmanager
def _shared(some: Sequence[Cell]) -> Generator[None, None, None]:
  """What cells share; if that fails, as for lack of memory, each runs alone."""
  try:
    yield
  except Exception as error:
    if cells.is_of_machine(error):
      raise
    # Only the text is logged: the traceback would keep the arrays alive.
    names, why = ", ".join(cell.id for cell in some), str(error)
    logging.warning("cells %s run one by one: %s", names, why)


def _is_done(record: Workdir) -> bool:
  """Whether a run came to its end; an audit may come back before.

  Raises:
    ValueError: some of its stages failed.
  """
  if not record.is_done and any(record.path.glob("*/**/failed.txt")):
    raise ValueError(
      f"{record.path}: some of it failed; its report.html says what"
    )
  return record.is_done
