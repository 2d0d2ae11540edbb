"""The record of a run: rows, images, metrics and progress.

An experiment gets a `Recorder` and does not know which. `Workdir` keeps the
record in a folder and survives a kill at any moment. `Memory` keeps it for a
notebook.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from unlearning_jax.record.memory import Memory as Memory
from unlearning_jax.record.progress import Progress
from unlearning_jax.record.workdir import Workdir as Workdir
from unlearning_jax.record.workdir import read_rows as read_rows


class Recorder(Protocol):
  """Takes what an experiment records, and gives it back to a resumed run.

  Attributes:
    is_writer: True in the one process that writes shared files.
  """

  is_writer: bool

  def guard(self) -> object:
    """Is called before anything is recorded.

    It raises if another worker has taken the run over.
    """

  @property
  def path(self) -> pathlib.Path:
    """The folder of files that are no rows: checkpoints, pictures, the edit.

    A `Memory` has a temporary folder.
    """
    ...

  @property
  def provenance(self) -> Mapping[str, Any]:
    """What every start has recorded, in the form of `provenance.json`."""
    ...

  def append_row(self, row: Mapping[str, Any]) -> None:
    """Records a finished row, keyed by its `id`."""
    ...

  def rows(self) -> list[dict[str, Any]]:
    """All finished rows of all processes."""
    ...

  def done_ids(self) -> set[str | int]:
    """The ids of all finished rows, which a restart skips."""
    ...

  def metrics(self, step: int, **values: Any) -> None:
    """Records the numbers of a step."""
    ...

  def read_metrics(self) -> dict[int, dict[str, Any]]:
    """Step -> metrics; a step that was repeated has its last metrics."""
    ...

  def save_image(self, name: str, array: np.ndarray) -> str:
    """Keeps an image and returns its path, which a row can hold."""
    ...

  def write(self, name: str, data: str | bytes) -> None:
    """Keeps a small file, such as a page or a table."""
    ...

  def save_summary(self, summary: Mapping[str, Any]) -> None:
    """Keeps the summary that the page shows."""
    ...

  def record_provenance(
    self, *, newer: Sequence[str] = (), **facts: Any
  ) -> None:
    """Records this start; refuses to go on with another model or judge."""
    ...

  def progress(self, label: str, total: int, *, done: int = 0) -> Progress:
    """A line that shows how far a stage is."""
    ...

  @property
  def is_done(self) -> bool:
    """Whether the run has ended."""
    ...

  def mark_done(self) -> None:
    """Marks the run as ended."""
    ...
