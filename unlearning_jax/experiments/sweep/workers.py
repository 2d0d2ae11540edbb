"""Runs the cells of a sweep, by one worker or by several that share a folder.

A cell is a run of its verb in `cells/<id>`, and resumes as such. Which worker
runs it is decided by a lease. A cell that failed is not tried again before
somebody asks for it.
"""

import contextlib
import functools
import gc
import pathlib
import re
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

import jax
from absl import logging

from unlearning_jax import checking, durable, settings
from unlearning_jax.experiments import cells, common
from unlearning_jax.experiments.sweep import figures, folder, table, verbs
from unlearning_jax.experiments.sweep.grid import Cell, Sweep
from unlearning_jax.record import Workdir, binding, leases, tracking

_LEASES = "leases"
# Between two looks at what others do, and between two tables on the way.
_LOOK_S, _TABLE_S = 2.0, 30.0
_sleep = time.sleep


def part_of(text: str) -> tuple[int, int]:
  """The part of an array job: `3/16` is the third of sixteen.

  Raises:
    ValueError: it has another form, or there is no such part.
  """
  found = re.fullmatch(r"(\d+)/(\d+)", text)
  part, count = (int(one) for one in found.groups()) if found else (0, 0)
  if not 1 <= part <= count:
    raise ValueError(
      f"--cell={text}: must be a part and their number, from 1/16 to 16/16; "
      "an array job takes --cell=$SLURM_ARRAY_TASK_ID/16 with --array=1-16"
    )
  return part, count


def run(
  sweep: Sweep,
  root: pathlib.Path,
  *,
  part: tuple[int, int] = (1, 1),
  retry: bool = False,
  track: Sequence[str] = (),
  held: Callable[[pathlib.Path], leases.Leases] = leases.Leases,
) -> int:
  """Runs cells until none is left that this worker can run.

  Workers of one sweep share a folder: each runs the same command, and takes
  cells that no other holds. At the end each waits for the cells of the others,
  and takes over those whose worker died.

  Args:
    sweep: from `plan`.
    root: the folder of the sweep.
    part: which part of the cells, and of how many; the worker leaves the other
      parts alone.
    retry: whether to run the cells that failed, and no others.
    track: trackers that hear of every cell, see `record.tracking`.
    held: opens the leases of a folder.

  Returns:
    The number of cells of this part that failed or were not finished.

  Raises:
    ValueError: the folder holds another sweep; a tracker is not installed;
      several processes have joined.
  """
  if (count := jax.process_count()) > 1:
    raise ValueError(
      f"sweep: {count} processes have joined, but each worker of a sweep runs "
      "alone; start them without jax.distributed.initialize()"
    )
  tracking.check(track)
  new = table.plain(sweep)
  is_new = folder.has_fewer(root, new)
  if checking.is_only():
    checking.passed()
  binding.writable(root)
  if is_new:
    with durable.replacing(root / table.FILE) as file:
      file.write(durable.to_json(new, "sweep", indent=2).encode())
  # A cell's own folder is swept when the cell is begun.
  durable.sweep(root, ".*")
  store = folder.Store(root)
  mine = sweep.cells[part[0] - 1 :: part[1]]
  if retry:
    store.again = {cell: age for cell in mine if (age := store.age(cell))}
    mine = tuple(store.again)
  worker = _Worker(store, held(root / _LEASES))
  worker.track = track
  last = 0.0

  def after():
    nonlocal last
    if time.monotonic() - last > _TABLE_S:
      table.conclude(root)
      last = time.monotonic()

  # The cells of a sweep mostly share their base.
  with common.reading_once(), contextlib.ExitStack() as stack:

    def pack(left: Sequence[Cell]) -> Generator[list[Cell], None, None]:
      return stack.enter_context(contextlib.closing(worker.taken(left)))

    cells.run(
      store,
      mine,
      functools.partial(_work, sweep.verb, worker),
      pack=pack,
      after=after,
    )
  table.conclude(root)
  return sum(not store.is_done(cell) for cell in mine)


class _Worker:
  """Takes cells that no other worker holds."""

  def __init__(self, store: folder.Store, held: leases.Leases):
    self._leases = held
    self.store: folder.Store = store
    # Cells that this worker does not take again.
    self.tried: set[Cell] = set()
    self.lease: leases.Lease | None = None
    self.track: Sequence[str] = ()

  def taken(self, left: Sequence[Cell]) -> Generator[list[Cell], None, None]:
    """Yields each cell that this worker is to run, and holds it meanwhile."""
    said = 0
    while True:
      others = 0
      for cell in left:
        if cell in self.tried or self.store.ended(cell):
          continue
        lease = self._leases.take(cell.id)
        if lease is None:
          others += 1
          continue
        with lease.beating():
          # It may have ended before it was taken.
          if self.store.ended(cell):
            continue
          self.tried.add(cell)
          self.lease = lease
          yield [cell]
        others += cell not in self.tried
      if not others:
        return
      # A record of a cell that was lost stays locked until it is collected.
      gc.collect()
      if others != said:
        print(f"waiting for {others} cells of other workers", flush=True)
      said = others
      _sleep(_LOOK_S)


def _work(verb: str, worker: _Worker, some: Sequence[Cell]):
  """Runs a cell; leaves it where another worker has taken it over."""
  (cell,) = some
  assert worker.lease is not None
  lease, started = worker.lease, time.monotonic()
  path = worker.store.folder(cell)
  print(f"cell {cell.id}: {cell.said}", flush=True)
  try:
    try:
      is_done = _run(verb, cell, path, lease, worker.track)
    except Exception:
      # Whatever goes wrong after another worker has come is no failure.
      lease.check()
      raise
    lease.check()
    seconds = time.monotonic() - started
    if not is_done:
      logging.warning("cell %s: the next start tries again", cell.id)
      return
    with durable.replacing(path / table.COST) as file:
      file.write(durable.to_json({"seconds": seconds}, "cost").encode())
  except (leases.LostError, durable.BusyError) as error:
    # Only the text is logged: the traceback would keep the record open.
    why = str(error)
    logging.warning("cell %s is left to another worker: %s", cell.id, why)
    worker.tried.discard(cell)


def _run(
  verb: str,
  cell: Cell,
  path: pathlib.Path,
  lease: leases.Lease,
  track: Sequence[str],
) -> bool:
  """Runs a cell's verb in its folder, and tells the trackers.

  Returns:
    Whether it is done; the next start tries it again otherwise.
  """
  own = verbs.find(verb)

  def end(tracker: tracking.Tracker):
    found = figures.read(verb, path)
    tracker.end(
      cell.values, {name: one["value"] for name, one in found.items()}
    )

  with contextlib.ExitStack() as ended:

    @functools.cache
    def opened() -> Any:
      record = common.workdir(
        str(path), settings.plain(cell.given), own.settings, alone=True,
        guard=lease.check,
      )  # fmt: skip
      record, trackers = tracking.tracked(record, track)
      for one in trackers:
        ended.callback(end, one)
      return record

    own.run(cell.given, opened, cell.edit)
    return _is_done(opened())


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
