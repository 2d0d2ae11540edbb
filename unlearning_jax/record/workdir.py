"""One run's record on disk: configuration, provenance, metrics, rows, images.

Rows are appended whole and keyed by id, so a run that is killed at any moment
loses at most the row in flight, and a restart skips the ids it finds.
"""

import json
import os
import pathlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from unlearning_jax import durable, renamed
from unlearning_jax.durable import JsonLines, replacing, to_json
from unlearning_jax.record import binding, provenance, seal
from unlearning_jax.record.progress import Progress


class Workdir:
  """The folder of one run. Opening it again with the same config resumes it.

  Every process of a run opens the same folder. Process 0 alone writes shared
  files. Each process writes rows to a file of its own, and `rows` merges them.

  Args:
    path: a local or mounted folder; it is made if it does not exist.
    config: the run's `ConfigDict` or dict, with values that JSON can hold.
    process_index: the index of this process, from 0.
    process_count: the number of processes.
    free: dotted keys of the config that no row depends on, so they may change.
    defaults: values of keys that an older run's config may lack.
    guard: called before anything is recorded; it raises if another worker has
      taken the run over.
    locked: whether no other process may open it to write, as long as this
      object lives.

  Raises:
    ValueError: the folder cannot be written; it holds files but no run; or it
      holds rows that another config made. The message lists the keys.
    BusyError: another run writes in the folder.
    DamagedError: the run has ended, and a file is not what it wrote.
  """

  def __init__(
    self,
    path: str | os.PathLike[str],
    config: Any,
    *,
    process_index: int = 0,
    process_count: int = 1,
    free: Sequence[str] = (),
    defaults: Mapping[str, Any] = MappingProxyType({}),
    guard: Callable[[], object] = lambda: None,
    locked: bool = True,
  ):
    self.guard = guard
    self._folder = binding.writable(path)
    self.is_writer = process_index == 0
    self._process_count = process_count
    self._started, self._is_loose = time.monotonic(), False
    own = "results.jsonl"
    if process_count > 1:
      own = f"results-{process_index}.jsonl"
    self._rows = JsonLines(self.path / own)
    self._metrics = JsonLines(self.path / "metrics.jsonl")
    self._ids: set[str | int] | None = None
    self._steps: dict[int, dict[str, Any]] | None = None
    if self.is_writer:
      seal.check(self.path, images=True)
    new, usual = binding.plain(config), binding.plain(dict(defaults))
    # A run that is refused leaves nothing, not even the lock.
    self._is_new(new, free, usual)
    self._lock = None
    if locked and self.is_writer:
      self._lock = durable.lock(self.path / ".lock", self.path)
    if locked:
      self._bind(new, free, usual)
    if self._lock is not None:
      durable.sweep(self.path)

  @property
  def path(self) -> pathlib.Path:
    """The folder; whoever asks may be about to write."""
    self.guard()
    return self._folder

  def _is_new(
    self, new: dict[str, Any], free: Sequence[str], defaults: dict[str, Any]
  ) -> bool:
    return binding.is_new(
      self.path, new, free, defaults,
      has_peers=self._process_count > 1, is_writer=self.is_writer,
    )  # fmt: skip

  def _bind(
    self, new: dict[str, Any], free: Sequence[str], defaults: dict[str, Any]
  ):
    if self._is_new(new, free, defaults):
      if self.is_writer:
        (self.path / "provenance.json").unlink(missing_ok=True)
      self.write("config.json", json.dumps(new, indent=2))

  # --- Rows ---

  def append_row(self, row: Mapping[str, Any]):
    """Records one finished row, which is safe on disk when this returns.

    Args:
      row: JSON values and numpy scalars or arrays, all finite. `row["id"]`, a
        str or an int, is unique in the run.

    Raises:
      ValueError: the row has no id, the id is recorded already, or a value is
        not finite.
    """
    self.guard()
    key = check_id(row)
    if self._ids is None:
      self._rows.open()  # Before reading: from here on the file is ours.
      self._ids = self.done_ids()
    if key in self._ids:
      raise ValueError(f"row: id {key!r} is already in {self.path}")
    self._rows.append(row, what=f"row {key!r}")
    self._ids.add(key)

  def rows(self) -> list[dict[str, Any]]:
    """All finished rows of all processes, without a torn last line.

    Raises:
      ValueError: a line is damaged, or an id is recorded twice.
    """
    return read_rows(self.path)

  def done_ids(self) -> set[str | int]:
    """The ids of all finished rows, which a restart skips."""
    return {row["id"] for row in self.rows()}

  # --- Metrics, images, small files ---

  def metrics(self, step: int, **values: Any):
    """Appends a line to `metrics.jsonl`, once a step; only process 0 does.

    Raises:
      ValueError: a value is not finite.
    """
    if self.is_writer:
      self.guard()
      # A resumed run repeats the steps after its last checkpoint.
      if self._steps is None:
        self._steps = self.read_metrics()
      known = self._steps.setdefault(int(step), {})
      told = {k: v for k, v in values.items() if k != "seconds"}
      if told.items() <= known.items():
        return
      known |= told
      wall_s = round(time.monotonic() - self._started, 3)
      line = {"step": int(step), "wall_s": wall_s, **values}
      self._metrics.append(line, what=f"metrics at step {step}")

  def read_metrics(self) -> dict[int, dict[str, Any]]:
    """Step -> metrics; older runs may repeat a step, whose last ones count."""
    merged: dict[int, dict[str, Any]] = {}
    with durable.explaining(self.path / "metrics.jsonl"):
      for line in self._metrics.read():
        merged.setdefault(line["step"], {}).update(line)
    return merged

  def save_image(self, name: str, array: np.ndarray) -> str:
    """Writes `images/<name>.png`, whole or not at all.

    Args:
      name: letters, digits, `._+@-`, and `/` for folders.
      array: uint8, (h, w, 3) or (h, w).

    Returns:
      The path inside the workdir, for a row to hold.

    Raises:
      ValueError: the name leaves the folder, or the array has another type or
        shape.
    """
    return write_image(self.path, name, array)

  def write(self, name: str, data: str | bytes):
    """Replaces one small file; only process 0 does."""
    if self.is_writer:
      if name != seal.NAME:
        self._loosen()
      with replacing(self.path / name) as file:
        file.write(data.encode() if isinstance(data, str) else data)

  def _loosen(self):
    """Takes what may change now out of the seal of a run that had ended."""
    if not self._is_loose and self.is_done:
      self._is_loose = True
      self.write(seal.NAME, seal.lasting(self.path))

  def save_summary(self, summary: Mapping[str, Any]):
    """Writes `summary.json`, which the page shows."""
    self.write("summary.json", to_json(summary, "summary", indent=2))

  def record_provenance(self, *, newer: Sequence[str] = (), **facts: Any):
    """Adds this start to `provenance.json`, before the first row.

    Args:
      newer: inputs that older versions did not record. The first start that
        has one binds those after it.
      **facts: of `provenance.of_start`.

    Raises:
      ValueError: a resume has another model, judge, input or seed.
    """
    run = provenance.of_start(**facts)
    runs = self._runs()
    for key in ("base_fingerprint", "judge_hashes", "seeds"):
      if runs:
        with durable.explaining(self.path / "provenance.json"):
          was = runs[0][key]
        self._check_same(key, was, run[key])
    self.check_inputs(run["inputs"], newer)
    document = {"runs": [*runs, run]}
    self.write("provenance.json", to_json(document, "provenance", indent=2))

  def check_inputs(self, inputs: Mapping[str, str], newer: Sequence[str] = ()):
    """Refuses to go on with other inputs than the run was started with.

    Args:
      inputs: name -> hash, as in `provenance.of_start`.
      newer: as in `record_provenance`.

    Raises:
      ValueError: they differ.
    """
    # Where several starts recorded a name, the first counts.
    was: dict[str, str] = {}
    for one in reversed(self._runs()):
      with durable.explaining(self.path / "provenance.json"):
        was |= renamed.inputs(one["inputs"])
    bound = {k: v for k, v in inputs.items() if k in was or k not in newer}
    if self._runs():
      self._check_same("inputs", was, bound)

  def _runs(self) -> list[dict[str, Any]]:
    file = self.path / "provenance.json"
    return provenance.starts(file) if file.exists() else []

  def _check_same(self, key: str, was: object, now: object):
    if was != now:
      raise ValueError(
        f"workdir: {self.path} was started with other {key}, so new rows would "
        "not belong to its rows; start it as before, or use another folder:\n  "
        + "\n  ".join(binding.differences(was, now, key))
      )

  @property
  def provenance(self) -> dict[str, Any]:
    """The content of `provenance.json`."""
    return {"runs": self._runs()}

  def progress(self, label: str, total: int, *, done: int = 0) -> Progress:
    """A line that shows how far a stage is."""
    return Progress(label, total, done=done)

  @property
  def is_done(self) -> bool:
    """Whether the run has ended."""
    return (self.path / seal.NAME).exists()

  def mark_done(self):
    """Marks the run as ended, with a seal of its files."""
    if self.is_writer:
      self.write(seal.NAME, seal.made(self.path))
      self._is_loose = False


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """`Workdir.rows` of a folder that another run writes."""
  files = sorted(
    pathlib.Path(path).glob("results*.jsonl"),
    key=lambda f: (len(f.name), f.name),
  )
  rows = {}
  for file in files:
    with durable.explaining(file):
      for row in map(renamed.row, JsonLines(file).read()):
        if rows.setdefault(row["id"], row) is not row:
          raise ValueError(f"{file}: id {row['id']!r} is recorded twice")
  return list(rows.values())


def check_id(row: Mapping[str, Any]) -> str | int:
  """The id of a row.

  Raises:
    ValueError: the id is missing, or neither a str nor an int.
  """
  key = row.get("id")
  if isinstance(key, bool) or not isinstance(key, str | int):
    raise ValueError(f"row: 'id' must be a str or an int; got {key!r}")
  return key


def write_image(folder: pathlib.Path, name: str, array: np.ndarray) -> str:
  """Writes an image as `Workdir.save_image` does."""
  if not re.fullmatch(r"\w[\w.+@-]*(/\w[\w.+@-]*)*", name):
    raise ValueError(
      f"image name {name!r}: use letters, digits, '._+@-', and '/' for folders"
    )
  array = np.asarray(array)
  if array.dtype != np.uint8 or array.shape[2:] not in ((), (3,)):
    raise ValueError(
      f"image {name!r}: must be uint8 of shape (h, w, 3) or (h, w); "
      f"got {array.dtype} of shape {array.shape}"
    )
  path = f"images/{name}.png"
  with replacing(folder / path) as file:
    Image.fromarray(array).save(file, format="png")
  return path
