"""Cells: pieces of work, each of which is run once.

Each process runs its share. A cell that has ended is not run again. A cell
that was killed is taken up by the next start. A cell that fails leaves the
reason, and the others go on. A store keeps what became of cells: a folder for
each cell (`Folders`), or rows of one record (`Rows`).
"""

import contextlib
import pathlib
import shutil
import traceback
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import jax
from absl import logging

from unlearning_jax import durable, renamed
from unlearning_jax.record import Recorder

C = TypeVar("C", bound=Hashable)
_OF_MACHINE = OSError, MemoryError, durable.BusyError, durable.DamagedError


class Store(Protocol[C]):
  """What has become of cells.

  Attributes:
    own: errors that fail one cell and are recorded; any other ends the run.
    failed: the cells that failed at this start -> why.
  """

  own: tuple[type[Exception], ...]
  failed: dict[C, str]

  def ended(self, cell: C) -> bool:
    """Whether a cell is over: it has its result, or has failed for good."""
    ...

  def check(self, cell: C) -> None:
    """Raises if the cell that has ended is not the cell that is asked for."""
    ...

  def fail(self, cell: C, error: Exception) -> None:
    """Records why a cell failed."""
    ...

  def tidy(self, cell: C) -> None:
    """Removes the files that a cell would have gone on from."""
    ...


def share(
  cells: Sequence[C], together: Callable[[C], Hashable] = lambda cell: cell
) -> list[C]:
  """The cells of this process.

  Args:
    cells: the cells of all processes.
    together: maps a cell to a key. Cells of one key share work, such as a
      base's images, and go to one process.
  """
  kinds = list(dict.fromkeys(map(together, cells)))
  own = set(kinds[jax.process_index() :: jax.process_count()])
  return [cell for cell in cells if together(cell) in own]


@contextlib.contextmanager
def failing(store: Store[C], cell: C):
  """Records an error of the cell's own that is raised inside."""
  try:
    yield
  except store.own as error:
    if is_of_machine(error):
      raise
    store.fail(cell, error)


def is_of_machine(error: BaseException | None) -> bool:
  """Whether a full disk, memory, another run or a damaged file caused it.

  A library may wrap it in an error of its own.
  """
  if durable.is_full(error):
    return True
  while error is not None:
    if isinstance(error, _OF_MACHINE):
      return not isinstance(error, FileNotFoundError)
    error = error.__cause__ or error.__context__
  return False


def run(
  store: Store[C],
  cells: Sequence[C],
  work: Callable[[Sequence[C]], None],
  *,
  pack: Callable[[Sequence[C]], Iterable[Sequence[C]]] = lambda left: (
    [cell] for cell in left
  ),
  after: Callable[[], object] = lambda: None,
) -> None:
  """Runs this process's cells to their end.

  Args:
    store: what has become of the cells; `store.failed` names those that failed.
    cells: from `share`.
    work: runs some cells and records their results. Given several cells, it
      wraps each in `failing`; given one, `run` does that.
    pack: groups the cells that are left into those that run at once.
    after: called after each group, whether it failed or not.
  """
  left = []
  for cell in cells:
    if not store.ended(cell):
      left.append(cell)
      continue
    with failing(store, cell):
      store.check(cell)
  for some in pack(left):
    alone = len(some) == 1
    try:
      with failing(store, some[0]) if alone else contextlib.nullcontext():
        work(some)
    except (jax.errors.JaxRuntimeError, durable.DamagedError) as error:
      # Only the text is logged: the traceback would keep the arrays alive.
      why = str(error)
      names = ", ".join(map(str, some))
      logging.warning("%s: the next start tries again: %s", names, why)
    else:
      for cell in some:
        store.tidy(cell)
    after()


class Folders(Generic[C]):
  """Cells that are folders: `str(cell)` below a root.

  The file `DONE` marks a cell that has ended. `failed.txt` holds the error of
  one that failed; the next start tries it again, since the cause may be gone.

  Args:
    root: the folder of all cells.
    done: the name of the file that marks an ended cell.
    check: see `Store.check`.
  """

  own: tuple[type[Exception], ...] = (Exception,)

  def __init__(
    self,
    root: pathlib.Path,
    done: str = "DONE",
    check: Callable[[C], None] = lambda cell: None,
  ):
    self.root, self.failed = root, dict[C, str]()
    self._done, self._check = done, check

  def folder(self, cell: C) -> pathlib.Path:
    """The folder of a cell."""
    return renamed.folder(self.root / str(cell))

  def ended(self, cell: C) -> bool:
    """Whether the cell has its result."""
    return (self.folder(cell) / self._done).exists()

  def why(self, cell: C) -> str:
    """The last line of the cell's error; "" if it has not failed."""
    # Another worker that ends the cell removes the file.
    lines = (durable.read_text(self._file(cell)) or "").strip().splitlines()
    return lines[-1] if lines else ""

  def check(self, cell: C):
    """Raises if the cell's folder holds another run."""
    self._file(cell).unlink(missing_ok=True)
    self._check(cell)

  def fail(self, cell: C, error: Exception):
    """Keeps the error and logs it."""
    text = "".join(traceback.format_exception(error))
    self.folder(cell).mkdir(parents=True, exist_ok=True)
    self._file(cell).write_text(text)
    self.failed[cell] = str(error) or type(error).__name__
    logging.error("%s: %s", cell, text)

  def tidy(self, cell: C):
    """Removes the error of an earlier start."""
    if cell not in self.failed:
      self._file(cell).unlink(missing_ok=True)

  def _file(self, cell: C) -> pathlib.Path:
    return self.folder(cell) / "failed.txt"


class Rows(Generic[C]):
  """Cells that are rows of one record: each ends with a last row or a failure.

  An error in a cell's own data or loss fails it for good. An error of the
  runtime, such as memory or a lost device, leaves no row.

  Args:
    run: the record.
    last: the id of a cell's last row.
    failure: the id of the row that says why a cell failed.
    folder: the folder of a cell's checkpoints.

  Attributes:
    note: called with the id of every row that is recorded.
  """

  own: tuple[type[Exception], ...] = (ValueError, FloatingPointError)

  def __init__(
    self,
    run: Recorder,
    last: Callable[[C], str],
    failure: Callable[[Any], str],
    folder: Callable[[C], pathlib.Path],
  ):
    self.run, self.failed = run, dict[C, str]()
    self.note: Callable[[str], None] = lambda key: None
    self.rows = {str(row["id"]): row for row in run.rows()}
    self._last, self._failure, self._folder = last, failure, folder

  def ended(self, cell: C) -> bool:
    """Whether the cell has its last row, or has failed for good."""
    return self._last(cell) in self.rows or self._failure(cell) in self.rows

  def check(self, cell: C):
    """Does nothing: the record checks its config as a whole."""

  def fail(self, cell: C, error: Exception):
    """Records why a cell, or what several cells share, failed for good."""
    text = f"{type(error).__name__}: {error}"
    self.failed[cell] = text
    self.record({"id": self._failure(cell), "failed": text[:500]})

  def why(self, cell: C) -> str:
    """Why the cell failed; "" if it has not."""
    return self.rows.get(self._failure(cell), {}).get("failed", "")

  def tidy(self, cell: C):
    """Removes the cell's checkpoints."""
    shutil.rmtree(self._folder(cell), ignore_errors=True)

  def record(self, row: Mapping[str, Any]):
    """Records a finished row."""
    self.run.append_row(row)
    self.rows[str(row["id"])] = dict(row)
    self.note(str(row["id"]))

  def left(self, cells: Iterable[C]) -> list[C]:
    """The cells that no process has ended."""
    self.rows |= {str(row["id"]): row for row in self.run.rows()}
    return [cell for cell in cells if not self.ended(cell)]
