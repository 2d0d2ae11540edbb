"""Metrics over images that are seen once, while they are drawn.

  counts = Tallies(run, ["accuracy", "my_package.fid:METRIC"])
  counts.update(images, rows)      # before the rows are recorded
  counts.estimates(rows)           # of all rows, when all are drawn

A metric that reads rows alone is computed from the record at the end. A metric
that reads images has a state, which is saved before its rows are recorded. A
run that is killed in between draws those rows again, and `update` skips them.
So no row is lost and none counts twice. Each process saves a state of its own,
and `estimates` merges them.
"""

import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from unlearning_jax import durable, metrics
from unlearning_jax.metrics import Estimate, Row, State
from unlearning_jax.record import Recorder

_ARRAY = "array "


class Tallies:
  """The states of several metrics over the rows of a run.

  Args:
    run: the record; states that an earlier start saved are continued.
    names: the metrics' names, see `metrics.load`.

  Raises:
    ValueError: a name is unknown.
  """

  def __init__(self, run: Recorder, names: Sequence[str]):
    self._metrics = {name: metrics.load(name) for name in dict.fromkeys(names)}
    self._folder = run.path / "metrics"
    self._seeing = [n for n, one in self._metrics.items() if one.images]
    self._file = self._folder / f"{jax.process_index():05}.safetensors"
    self._states, self._own = self._read(self._file)
    self._run, self._pending = run, list[Row]()
    # When the states were saved last, and how long that took.
    self._saved = self._saving = 0.0
    # After a change in their number, other processes' rows stay counted.
    self._seen = set(self._own)
    for file in self._files():
      self._seen |= set(self._read(file)[1])

  def update(
    self,
    images: UInt8[np.ndarray, "n h w 3"],
    rows: Sequence[Row],
    save: bool = True,
  ):
    """Counts images and saves the states; rows counted before are skipped.

    Args:
      rows: a row for each image, with `id` and `model`, not yet recorded.
      save: False for a caller whose rows go through `record`.

    Raises:
      ValueError: a metric refuses an image or a row.
    """
    fresh = [i for i, row in enumerate(rows) if _key(row) not in self._seen]
    if not (self._seeing and fresh):
      return
    # One array for all of them, so that metrics share its features.
    seen, part = np.asarray(images)[fresh], [rows[i] for i in fresh]
    for name in self._seeing:
      metric = self._metrics[name]
      self._states[name] = metric.update(self._states[name], seen, part)
    keys = [_key(row) for row in part]
    self._own += keys
    self._seen |= set(keys)
    if save:
      self.save()

  def estimates(self, rows: Sequence[Row]) -> dict[str, list[Estimate]]:
    """The estimates of every metric, by the metric's name.

    Args:
      rows: all rows of the run, of all processes, each with `id` and `model`.

    Raises:
      ValueError: there are no rows, or a row was recorded but never counted.
    """
    found = {}
    read = [self._read(file) for file in self._files()]
    counted = {key for _, keys in read for key in keys}
    for name, metric in self._metrics.items():
      if not metric.images:
        found[name] = metric.measure(rows)
        continue
      missing = sorted({_key(row) for row in rows} - counted)
      if missing:
        raise ValueError(
          f"metric {name}: {len(missing)} rows of this run were drawn without "
          f"it, such as {missing[0]!r}; use another folder"
        )
      state = metric.init()
      for states, _ in read:
        state = metric.merge(state, states[name])
      found[name] = metric.result(state, len(rows))
    return found

  def _files(self) -> list[pathlib.Path]:
    return sorted(self._folder.glob("*.safetensors")) if self._seeing else []

  def _read(self, file: pathlib.Path) -> tuple[dict[str, State], list[str]]:
    states = {name: self._metrics[name].init() for name in self._seeing}
    if not (self._seeing and file.exists()):
      return states, []
    arrays, text = durable.load_tensors(file)
    held = json.loads(text["states"])
    loaded = {n: unpacked(held[n], arrays) for n in states if n in held}
    return states | loaded, json.loads(text["rows"])

  def record(self, rows: Sequence[Row], *, now: bool = False):
    """Records rows whose images are counted, after the states are saved.

    Saving takes at most a twentieth of the time, since FID's state has 32 MB a
    model and a batch can have four images. Until then the rows wait.

    Args:
      rows: as the record keeps them.
      now: True at the end, when no row may wait.
    """
    self._pending += rows
    if now or time.monotonic() - self._saved >= 20 * self._saving:
      self.save()
      for row in self._pending:
        self._run.append_row(row)
      self._pending.clear()

  def save(self):
    """Saves the states, so that their rows may be recorded."""
    self._run.guard()
    if not self._seeing:
      return
    start = time.monotonic()
    arrays: dict[str, np.ndarray] = {}
    states = {n: packed(state, arrays) for n, state in self._states.items()}
    text = {"states": json.dumps(states), "rows": json.dumps(self._own)}
    durable.save_tensors(self._file, arrays, text)
    self._saved = time.monotonic()
    self._saving = self._saved - start


def _key(row: Row) -> str:
  return f"{row['model']}/{row['id']}"


def packed(state: State, arrays: dict[str, np.ndarray]) -> Any:
  """A state as JSON. Its arrays are moved to `arrays`, under numbers.

  Args:
    state: nested mappings and sequences of arrays, numbers and texts.
    arrays: gets the arrays.
  """
  if isinstance(state, Mapping):
    return {key: packed(value, arrays) for key, value in state.items()}
  if isinstance(state, list | tuple):
    return [packed(value, arrays) for value in state]
  if isinstance(state, np.ndarray | np.generic | jax.Array):
    name = f"{_ARRAY}{len(arrays)}"
    arrays[name] = np.asarray(state)
    return name
  return state


def unpacked(packed_state: Any, arrays: Mapping[str, np.ndarray]) -> State:
  """The state that `packed` made JSON of; tuples come back as lists."""
  if isinstance(packed_state, Mapping):
    return {k: unpacked(v, arrays) for k, v in packed_state.items()}
  if isinstance(packed_state, list):
    return [unpacked(value, arrays) for value in packed_state]
  if isinstance(packed_state, str) and packed_state.startswith(_ARRAY):
    return arrays[packed_state]
  return packed_state
