"""What a run tells: rows, images, metrics, progress, and where they are kept.

An experiment gets a `Recorder` and never asks which. `Workdir` keeps the record
in a folder, safe from a kill at any moment; `Memory` keeps it for a notebook.
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
  """What an experiment tells, and reads back when it goes on.

  Attributes:
    path: a folder for files that have no row: states to go on from, target
      images, the edit. Of `Memory` it is temporary.
    is_writer: whether this process writes what there is one of.
  """

  path: pathlib.Path
  is_writer: bool

  @property
  def provenance(self) -> Mapping[str, Any]:
    """What every start has recorded, in the form of `provenance.json`."""
    ...

  def append_row(self, row: Mapping[str, Any]) -> None:
    """Records a finished row, keyed by its `id`."""
    ...

  def rows(self) -> list[dict[str, Any]]:
    """All finished rows, of all processes."""
    ...

  def done_ids(self) -> set[str | int]:
    """The ids of all finished rows: what a restart has to skip."""
    ...

  def metrics(self, step: int, **values: Any) -> None:
    """Records numbers of a step."""
    ...

  def read_metrics(self) -> dict[int, dict[str, Any]]:
    """Metrics by step; of a repeated step the last."""
    ...

  def save_image(self, name: str, array: np.ndarray) -> str:
    """Keeps an image; where it is, for a row to hold."""
    ...

  def write(self, name: str, data: str | bytes) -> None:
    """Keeps a small file, as a page or a table."""
    ...

  def save_summary(self, summary: Mapping[str, Any]) -> None:
    """Keeps what the page is made of."""
    ...

  def record_provenance(
    self, *, newer: Sequence[str] = (), **facts: Any
  ) -> None:
    """Records this start; refuses to go on with other models or judges."""
    ...

  def progress(self, label: str, total: int, *, done: int = 0) -> Progress:
    """The line that says how far a stage is."""
    ...

  def mark_done(self) -> None:
    """Says that the run has ended well."""
    ...
