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
from collections.abc import Callable, Generator, Hashable, Sequence
from typing import Any

import jax

from unlearning_jax import checking, durable
from unlearning_jax.experiments import cells, common
from unlearning_jax.experiments.sweep import folder, running, table, verbs
from unlearning_jax.experiments.sweep.grid import Cell, Sweep
from unlearning_jax.record import binding, leases, tracking

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
  pack: int = 1,
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
    pack: most cells of one kind that this worker runs at once; how they end
      does not depend on it.
    held: opens the leases of a folder.

  Returns:
    The number of cells of this part that failed or were not finished.

  Raises:
    ValueError: the folder holds another sweep; a tracker is not installed;
      several processes have joined; the verb has no packs.
  """
  _open(sweep, root, track, pack)
  store = folder.Store(root)
  mine = sweep.cells[part[0] - 1 :: part[1]]
  if retry:
    store.again = {cell: age for cell in mine if (age := store.age(cell))}
    mine = tuple(store.again)
  holding = running.Held(store, track)
  packs = verbs.find(sweep.verb).pack
  kind = packs.kind if packs else (lambda given: None)
  worker = _Worker(holding, held(root / _LEASES), pack, kind)
  last = 0.0

  def after():
    nonlocal last
    if time.monotonic() - last > _TABLE_S:
      table.conclude(root)
      last = time.monotonic()

  # The cells of a sweep mostly share their base.
  with common.reading_once(), contextlib.ExitStack() as stack:

    def taken(left: Sequence[Cell]) -> Generator[list[Cell], None, None]:
      return stack.enter_context(contextlib.closing(worker.taken(left)))

    cells.run(
      store,
      mine,
      functools.partial(running.run, sweep.verb, holding),
      pack=taken,
      after=after,
    )
  table.conclude(root)
  return sum(not store.is_done(cell) for cell in mine)


def _open(sweep: Sweep, root: pathlib.Path, track: Sequence[str], pack: int):
  """Checks what `run` was given, and writes the sweep into its folder."""
  _check_pack(sweep.verb, pack)
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


def _check_pack(verb: str, pack: int):
  """Checks that a sweep's cells can run in packs of this many.

  Raises:
    ValueError: they cannot.
  """
  if pack < 1:
    raise ValueError(f"--pack={pack}: must be 1 or more")
  if pack > 1 and verbs.find(verb).pack is None:
    having = ", ".join(name for name, one in verbs.VERBS.items() if one.pack)
    raise ValueError(
      f"--pack={pack}: cells of {verb} run one by one; leave the flag out "
      f"(packs are for: {having})"
    )


class _Worker:
  """Takes cells that no other worker holds.

  Args:
    held: what it holds, and runs.
    lent: the leases of the folder.
    most: cells that it takes at once.
    kind: equal for cells that it may take at once.
  """

  def __init__(
    self,
    held: running.Held,
    lent: leases.Leases,
    most: int,
    kind: Callable[[Any], Hashable],
  ):
    self._held, self._leases, self._most, self._kind = held, lent, most, kind

  def taken(self, left: Sequence[Cell]) -> Generator[list[Cell], None, None]:
    """Yields the cells that this worker is to run, and holds them meanwhile."""
    said = 0
    while True:
      waiting = [*left]
      others: set[Cell] = set()
      while waiting:
        with contextlib.ExitStack() as beating:
          some, waiting = self._some(waiting, beating, others)
          if some:
            yield some
        others |= {cell for cell in some if cell not in self._held.tried}
      if not others:
        return
      # A record of a cell that was lost stays locked until it is collected.
      gc.collect()
      if len(others) != said:
        print(f"waiting for {len(others)} cells of other workers", flush=True)
      said = len(others)
      _sleep(_LOOK_S)

  def _some(
    self,
    waiting: Sequence[Cell],
    beating: contextlib.ExitStack,
    others: set[Cell],
  ) -> tuple[list[Cell], list[Cell]]:
    """Takes cells of one kind; those that others hold are added to `others`.

    Returns:
      The cells taken, and those that have not been looked at.
    """
    some: list[Cell] = []
    left: list[Cell] = []
    for i, cell in enumerate(waiting):
      if len(some) == self._most:
        return some, [*left, *waiting[i:]]
      if cell in self._held.tried or self._held.store.ended(cell):
        continue
      if some and self._kind(cell.given) != self._kind(some[0].given):
        left.append(cell)
        continue
      lease = self._leases.take(cell.id)
      if lease is None:
        others.add(cell)
        continue
      with contextlib.ExitStack() as own:
        own.enter_context(lease.beating())
        # It may have ended before it was taken.
        if not self._held.store.ended(cell):
          beating.push(own.pop_all())
          self._held.tried.add(cell)
          self._held.leases[cell] = lease
          some.append(cell)
    return some, left
