"""A sweep's folder: whose it is, and what has become of its cells."""

import contextlib
import pathlib
from collections.abc import Mapping
from typing import Any

from unlearning_jax.experiments import cells
from unlearning_jax.experiments.sweep import table
from unlearning_jax.experiments.sweep.grid import Cell, Sweep
from unlearning_jax.record import seal


class Store(cells.Folders[Cell]):
  """The cells of a sweep; one that failed counts as ended.

  Attributes:
    again: cells that may be tried again -> when they had failed.
  """

  def __init__(self, root: pathlib.Path):
    super().__init__(root / "cells", check=self._check_seal)
    self.again: dict[Cell, int] = {}

  def _check_seal(self, cell: Cell):
    seal.check(self.folder(cell), images=True)

  def is_done(self, cell: Cell) -> bool:
    """Whether the cell has its result."""
    return super().ended(cell)

  def age(self, cell: Cell) -> int:
    """When the cell failed, in nanoseconds of its file; 0 if it has not."""
    # Another worker that ends the cell removes the file.
    with contextlib.suppress(FileNotFoundError):
      if not self.is_done(cell):
        return self._file(cell).stat().st_mtime_ns
    return 0

  def ended(self, cell: Cell) -> bool:
    """Whether the cell is done, or failed and is not to be tried again."""
    # Another worker may have tried it again, and failed anew.
    failed = self.age(cell)
    return self.is_done(cell) or failed not in (0, self.again.get(cell, 0))

  def check(self, cell: Cell):
    """Raises if a file of a cell that is done has been damaged."""
    if self.is_done(cell):
      super().check(cell)

  def tidy(self, cell: Cell):
    """Removes the error of an earlier start, once the cell is done."""
    if self.is_done(cell):
      super().tidy(cell)


def has_fewer(root: pathlib.Path, new: Mapping[str, Any]) -> bool:
  """Whether a folder lacks cells of a sweep, or the sweep itself.

  Args:
    root: the folder.
    new: from `table.plain`.

  Raises:
    ValueError: the folder holds another sweep, or other files. A sweep may
      get more cells, and a start may name some of them only.
  """
  file = root / table.FILE
  if not file.exists():
    strange = [
      path.name
      for path in (root.iterdir() if root.exists() else ())
      if not path.name.startswith((".", table.FILE))
      and path.suffix not in (".log", ".out", ".err")
    ]
    # Another worker may have begun in the meantime.
    if strange and not file.exists():
      raise ValueError(
        f"workdir: {root} holds no sweep, but other files such as "
        f"{min(strange)}; name a new folder or an empty one"
      )
    return True
  old = table.read(file)
  if old["verb"] != new["verb"]:
    raise ValueError(
      f"workdir: {root} holds another sweep: its verb was {old['verb']}, and "
      f"is {new['verb']} now; use another folder"
    )
  was, now = ({one["id"] for one in each["cells"]} for each in (old, new))
  if was >= now:
    return False
  lost = [one for one in old["cells"] if one["id"] not in now]
  if lost:
    said = ", ".join(f"{k}={v}" for k, v in lost[0]["values"].items())
    raise ValueError(
      f"workdir: {root} holds another sweep, with {len(lost)} cells that this "
      f"one lacks, such as {said}; name its cells too, or use another folder"
    )
  return True


def described(
  sweep: Sweep,
  root: pathlib.Path,
  *,
  part: tuple[int, int] = (1, 1),
  retry: bool = False,
) -> str:
  """The cells of a start, what became of them, and what the rest costs.

  Args:
    sweep: from `plan`.
    root: its folder, which need not be there yet.
    part: as in `workers.run`.
    retry: as in `workers.run`; only the cells that failed are left then.
  """
  store = Store(root)
  lines, left = [], 0
  mine = sweep.cells[part[0] - 1 :: part[1]]
  for cell in mine:
    state = "failed" if store.why(cell) else "not run"
    state = "done" if store.is_done(cell) else state
    left += state == ("failed" if retry else "not run")
    lines.append(f"{cell.id}  {state:8}{cell.said}")
  lines.append(f"{len(mine)} cells of {sweep.verb}, {left} left")
  seconds = table.first_seconds(root, [cell.id for cell in sweep.cells])
  cost = "cost unknown: no cell has ended"
  if seconds is not None:
    cost = (
      f"one took {seconds:.1f} s, so about {seconds * left / 60:.1f} min "
      "are left for one worker"
    )
  return "\n".join([*lines, cost])
