"""Cells: pieces of work that are run once each, whatever becomes of the others.

A process has its share of them. What has ended is never run again, what was
killed is taken up by the next start, and what fails leaves the reason and lets
the others go on. Where that is kept is a store's: a folder for each cell
(`Folders`), or rows of one record (`Rows`).
"""

import contextlib
import pathlib
import shutil
import traceback
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import jax
from absl import logging

from unlearning_jax import renamed
from unlearning_jax.record import Recorder

C = TypeVar("C", bound=Hashable)


class Store(Protocol[C]):
  """Where it is kept what has become of cells.

  Attributes:
    own: errors that are a cell's own, to be recorded; others end the run.
    failed: cells that failed at this start, and why.
  """

  own: tuple[type[Exception], ...]
  failed: dict[C, str]

  def ended(self, cell: C) -> bool:
    """Whether it is over: it has its result, or has failed for good."""
    ...

  def check(self, cell: C) -> None:
    """Raises if what has ended is not the cell that is asked for."""
    ...

  def fail(self, cell: C, error: Exception) -> None:
    """Keeps why a cell did not end well."""
    ...

  def tidy(self, cell: C) -> None:
    """Removes what a cell was to go on from."""
    ...


def share(
  cells: Sequence[C], together: Callable[[C], Hashable] = lambda cell: cell
) -> list[C]:
  """This process's cells.

  Args:
    cells: all of them.
    together: cells that share something, as a base's images, are one process's:
      it is made once.
  """
  kinds = list(dict.fromkeys(map(together, cells)))
  own = set(kinds[jax.process_index() :: jax.process_count()])
  return [cell for cell in cells if together(cell) in own]


@contextlib.contextmanager
def failing(store: Store[C], cell: C):
  """Inside, an error of the cell's own is kept; the others go on."""
  try:
    yield
  except store.own as error:
    store.fail(cell, error)


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
    store: what has become of them; `store.failed` has those that failed.
    cells: of `share`.
    work: runs some cells, and records what they give. Of several it tells their
      errors apart with `failing`; of a single one that is done for it.
    pack: what is run at once, of cells that are left.
    after: is called when something was run, whether it failed or not.
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
    except jax.errors.JaxRuntimeError as error:
      # Alone: with it go the frames, and what they hold.
      why = str(error)
      names = ", ".join(map(str, some))
      logging.warning("%s: the next start tries again: %s", names, why)
    else:
      for cell in some:
        store.tidy(cell)
    after()


class Folders(Generic[C]):
  """Cells that are folders, `str` of each under a root.

  A file, `DONE`, says that a cell has ended; `failed.txt` why it has not. It is
  tried again by the next start: whatever was wrong may have been mended.

  Args:
    root: of all folders.
    done: name of the file.
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
    """Where a cell is."""
    return renamed.folder(self.root / str(cell))

  def ended(self, cell: C) -> bool:
    """Whether it has its result."""
    return (self.folder(cell) / self._done).exists()

  def why(self, cell: C) -> str:
    """Why it failed, the last line; "" if it has not."""
    file = self._file(cell)
    return file.read_text().strip().splitlines()[-1] if file.exists() else ""

  def check(self, cell: C):
    """Raises if its folder holds another run."""
    self._file(cell).unlink(missing_ok=True)
    self._check(cell)

  def fail(self, cell: C, error: Exception):
    """Keeps the error, and tells it."""
    text = "".join(traceback.format_exception(error))
    self.folder(cell).mkdir(parents=True, exist_ok=True)
    self._file(cell).write_text(text)
    self.failed[cell] = str(error)
    logging.error("%s: %s", cell, text)

  def tidy(self, cell: C):
    """Removes the reason of an earlier failure."""
    if cell not in self.failed:
      self._file(cell).unlink(missing_ok=True)

  def _file(self, cell: C) -> pathlib.Path:
    return self.folder(cell) / "failed.txt"


class Rows(Generic[C]):
  """Cells that are rows of one record: the last of each, or why it failed.

  A cell's own data or loss fails it for good. What the runtime fails of, memory
  or a lost device, leaves no row.

  Args:
    run: the record.
    last: the id of a cell's last row.
    failure: the id of the row that says why a cell failed.
    folder: where a cell keeps what it would go on from.

  Attributes:
    note: takes every row.
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
    """Whether it has its last row, or has failed for good."""
    return self._last(cell) in self.rows or self._failure(cell) in self.rows

  def check(self, cell: C):
    """Nothing: the record is of one config as a whole."""

  def fail(self, cell: C, error: Exception):
    """Records why, for good; a cell, or what cells share."""
    text = f"{type(error).__name__}: {error}"
    self.failed[cell] = text
    self.record({"id": self._failure(cell), "failed": text[:500]})

  def why(self, cell: C) -> str:
    """Why it failed; "" if it has not."""
    return self.rows.get(self._failure(cell), {}).get("failed", "")

  def tidy(self, cell: C):
    """Removes its folder."""
    shutil.rmtree(self._folder(cell), ignore_errors=True)

  def record(self, row: Mapping[str, Any]):
    """Keeps a finished row."""
    self.run.append_row(row)
    self.rows[str(row["id"])] = dict(row)
    self.note(str(row["id"]))

  def left(self, cells: Iterable[C]) -> list[C]:
    """The cells that no process has ended."""
    self.rows |= {str(row["id"]): row for row in self.run.rows()}
    return [cell for cell in cells if not self.ended(cell)]
