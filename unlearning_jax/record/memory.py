"""A run's record in memory, for a notebook."""

import copy
import json
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unlearning_jax.durable import replacing, to_json
from unlearning_jax.record import provenance, workdir
from unlearning_jax.record.progress import Progress


class Memory:
  """As `Workdir`, of a run that nothing has to outlive.

  Rows pass through JSON as they would in a file, so that both give the same
  values. Files without a row lie in a temporary folder, gone with this object.

  Args:
    quiet: show no progress.
  """

  is_writer = True

  def __init__(self, *, quiet: bool = False):
    self._folder = tempfile.TemporaryDirectory(prefix="unlearning_jax-")
    self.path = pathlib.Path(self._folder.name)
    self.images: dict[str, np.ndarray] = {}
    self.files: dict[str, str | bytes] = {}
    self.summary: dict[str, Any] = {}
    self.provenance: dict[str, Any] = {}
    self.is_done, self._quiet = False, quiet
    self._rows: dict[str | int, dict[str, Any]] = {}
    self._metrics: dict[int, dict[str, Any]] = {}

  def append_row(self, row: Mapping[str, Any]):
    """Records a finished row.

    Raises:
      ValueError: no id, one that is there already, or a value that is not
        finite.
    """
    key = workdir.check_id(row)
    if key in self._rows:
      raise ValueError(f"row: id {key!r} is already recorded")
    self._rows[key] = json.loads(to_json(dict(row), f"row {key!r}"))

  def rows(self) -> list[dict[str, Any]]:
    """All finished rows."""
    return copy.deepcopy(list(self._rows.values()))

  def done_ids(self) -> set[str | int]:
    """The ids of all finished rows."""
    return set(self._rows)

  def metrics(self, step: int, **values: Any):
    """Records numbers of a step."""
    line = json.loads(to_json({"step": int(step), **values}, "metrics"))
    self._metrics.setdefault(step, {}).update(line)

  def read_metrics(self) -> dict[int, dict[str, Any]]:
    """Metrics by step."""
    return copy.deepcopy(self._metrics)

  def save_image(self, name: str, array: np.ndarray) -> str:
    """Keeps an image, also as a file for a page to hold.

    Raises:
      ValueError: as `Workdir.save_image`.
    """
    path = workdir.write_image(self.path, name, array)
    self.images[path] = np.asarray(array)
    return path

  def write(self, name: str, data: str | bytes):
    """Keeps a small file, also on disk for a page to be made of."""
    self.files[name] = data
    with replacing(self.path / name) as file:
      file.write(data.encode() if isinstance(data, str) else data)

  def save_summary(self, summary: Mapping[str, Any]):
    """Keeps what the page is made of."""
    text = to_json(summary, "summary", indent=2)
    self.summary = json.loads(text)
    self.write("summary.json", text)

  def record_provenance(self, *, newer: Sequence[str] = (), **facts: Any):
    """Keeps what ran, in the form of `provenance.json`."""
    del newer
    self.provenance = {"runs": [provenance.of_start(**facts)]}
    text = to_json(self.provenance, "provenance", indent=2)
    self.write("provenance.json", text)

  def progress(self, label: str, total: int, *, done: int = 0) -> Progress:
    """The line that says how far a stage is."""
    return Progress(label, total, done=done, quiet=self._quiet)

  def mark_done(self):
    """Says that the run has ended well."""
    self.is_done = True
