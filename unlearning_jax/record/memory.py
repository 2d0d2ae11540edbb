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
  """A record with the interface of `Workdir` that is gone when Python ends.

  Rows pass through JSON as they would in a file, so both records give the same
  values. Other files lie in a temporary folder, which goes with this object.

  Args:
    quiet: True shows no progress.
  """

  is_writer = True

  def guard(self):
    """Does nothing: nobody else can write here."""

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
      ValueError: the row has no id, the id is recorded already, or a value is
        not finite.
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
    """Records the numbers of a step."""
    line = json.loads(to_json({"step": int(step), **values}, "metrics"))
    self._metrics.setdefault(step, {}).update(line)

  def read_metrics(self) -> dict[int, dict[str, Any]]:
    """Step -> metrics."""
    return copy.deepcopy(self._metrics)

  def save_image(self, name: str, array: np.ndarray) -> str:
    """Keeps an image, in memory and as a file for the page.

    Raises:
      ValueError: as `Workdir.save_image`.
    """
    path = workdir.write_image(self.path, name, array)
    self.images[path] = np.asarray(array)
    return path

  def write(self, name: str, data: str | bytes):
    """Keeps a small file, in memory and on disk for the page."""
    self.files[name] = data
    with replacing(self.path / name) as file:
      file.write(data.encode() if isinstance(data, str) else data)

  def save_summary(self, summary: Mapping[str, Any]):
    """Keeps the summary that the page shows."""
    text = to_json(summary, "summary", indent=2)
    self.summary = json.loads(text)
    self.write("summary.json", text)

  def record_provenance(self, *, newer: Sequence[str] = (), **facts: Any):
    """Records this start, in the form of `provenance.json`."""
    del newer
    self.provenance = {"runs": [provenance.of_start(**facts)]}
    text = to_json(self.provenance, "provenance", indent=2)
    self.write("provenance.json", text)

  def progress(self, label: str, total: int, *, done: int = 0) -> Progress:
    """A line that shows how far a stage is."""
    return Progress(label, total, done=done, quiet=self._quiet)

  def mark_done(self):
    """Marks the run as ended."""
    self.is_done = True
