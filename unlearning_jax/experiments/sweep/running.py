"""Runs the cells that a worker holds: each alone, or some of a kind at once."""

import contextlib
import functools
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

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
  """A cell's run, as this worker records it."""

  def __init__(self, verb: str, held: Held, cell: Cell):
    self.cell, self._verb, self._held = cell, verb, held
    self._lease = held.leases[cell]
    self._path = held.store.folder(cell)
    self._trackers = contextlib.ExitStack()

  @functools.cached_property
  def _record(self) -> Any:
    own = verbs.find(self._verb)
    record = common.workdir(
      str(self._path), settings.plain(self.cell.given), own.settings,
      alone=True, guard=self._lease.check,
    )  # fmt: skip
    record, trackers = tracking.tracked(record, self._held.track)
    for one in trackers:
      self._trackers.callback(self._end, one)
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
    """Records an error of the cell's own; its trackers hear no more of it."""
    with cells.failing(self._held.store, self.cell), self._leaving():
      with contextlib.ExitStack() as ended:
        ended.push(self._trackers)
        yield
        ended.pop_all()

  @contextlib.contextmanager
  def _leaving(self) -> Generator[None, None, None]:
    """Leaves the cell where another worker has taken it over."""
    try:
      try:
        yield
      except Exception:
        # Whatever goes wrong after another worker has come is no failure.
        self._lease.check()
        raise
      self._lease.check()
    except (leases.LostError, durable.BusyError) as error:
      # Only the text is logged: the traceback would keep the record open.
      why = str(error)
      logging.warning(
        "cell %s is left to another worker: %s", self.cell.id, why
      )
      self._held.tried.discard(self.cell)

  def is_over(self) -> bool:
    """Whether it has failed, or is left to another worker."""
    failed = self.cell in self._held.store.failed
    return failed or self.cell not in self._held.tried

  def end(self, rest: Callable[[], object], seconds: float = 0.0):
    """Does the rest of the run, tells the trackers, and keeps what it cost.

    Args:
      rest: what is left to do.
      seconds: its share of what was done before.
    """
    started = time.monotonic()
    with self._leaving():
      with self._trackers:
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
  if len(runs) == 1:
    (cell,), (one,) = some, runs
    one.end(lambda: own.run(cell.given, one.opened, cell.edit))
    return
  assert own.pack is not None
  started = time.monotonic()
  rest = own.pack.begin(
    [verbs.Packed(one.cell.given, one.opened, one.failing) for one in runs]
  )
  each = (time.monotonic() - started) / len(runs)
  for one, left in zip(runs, rest, strict=True):
    if left is not None and not one.is_over():
      with cells.failing(held.store, one.cell):
        one.end(left, each)


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
