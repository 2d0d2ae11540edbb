"""Batches that are functions of a step, and a process's share of rows."""

import dataclasses
from collections.abc import Mapping
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int, Shaped

Rows = TypeVar("Rows", list, np.ndarray)
# Arrays with a row for each caption, where images have several; the two others
# say which captions are an image's.
TEXTS = ("context", "ids")
FIRST, COUNT = "first_caption", "captions"


@dataclasses.dataclass(frozen=True)
class Batches:
  """Shuffled batches of rows in memory; `batches[step]` needs no earlier step.

  Rows are shuffled by (seed, epoch). A last, short batch of an epoch is left
  out.

  Attributes:
    arrays: name to array; all have the same number of rows. Where images have
      several captions, `first_caption` and `captions` hold an image's first row
      in `context` or `ids`, and how many it has there; one of them is drawn by
      (seed, epoch, row).
    batch_size: rows per batch.
    seed: of the shuffling.
    part: (i, n) gives the i-th of n equal parts of each batch. Processes that
      share batches so train on what one process would.
  """

  arrays: Mapping[str, Shaped[np.ndarray, "n ..."]]
  batch_size: int
  seed: int = 0
  part: tuple[int, int] = (0, 1)

  def __post_init__(self):
    several = COUNT in self.arrays
    sizes = {
      name: len(array)
      for name, array in self.arrays.items()
      if not (several and name in TEXTS)
    }
    if not sizes:
      raise ValueError("data: no arrays")
    if len(set(sizes.values())) != 1:
      raise ValueError(f"data: arrays of unequal length: {sizes}")
    if not 1 <= self.batch_size <= self._rows:
      raise ValueError(
        f"batch_size={self.batch_size}: must be between 1 and the "
        f"{self._rows} rows of the data"
      )
    if self.batch_size % self.part[1]:
      raise ValueError(
        f"batch_size={self.batch_size}: {self.part[1]} processes share a batch "
        "in equal parts; give a multiple"
      )

  @property
  def _rows(self) -> int:
    rows = self.arrays.get(COUNT, next(iter(self.arrays.values())))
    return len(rows)

  @property
  def steps_per_epoch(self) -> int:
    """Batches in one pass over the rows."""
    return self._rows // self.batch_size

  def __getitem__(self, step: int) -> dict[str, Shaped[np.ndarray, "b ..."]]:
    epoch, position = divmod(step, self.steps_per_epoch)
    order = np.random.default_rng((self.seed, epoch)).permutation(self._rows)
    index, count = self.part
    size = self.batch_size // count
    start = position * self.batch_size + index * size
    rows = order[start : start + size]
    draws = None
    if COUNT in self.arrays:
      draws = np.random.default_rng((self.seed, epoch, 1)).random(self._rows)
    return taken(self.arrays, rows, draws)


def taken(
  arrays: Mapping[str, Shaped[np.ndarray, "n ..."]],
  rows: Int[np.ndarray, " b"],
  draws: Float[np.ndarray, " n"] | None = None,
) -> dict[str, Shaped[np.ndarray, "b ..."]]:
  """Rows of arrays, with one caption an image.

  Args:
    arrays: as in `Batches`.
    rows: the rows to take.
    draws: a number from 0 to 1 for each image, which chooses its caption; None
      for the first.
  """
  if COUNT not in arrays:
    return {name: array[rows] for name, array in arrays.items()}
  chosen = arrays[FIRST][rows]
  if draws is not None:
    chosen = chosen + (draws[rows] * arrays[COUNT][rows]).astype(int)
  return {
    name: array[chosen if name in TEXTS else rows]
    for name, array in arrays.items()
    if name not in (FIRST, COUNT)
  }


def share(rows: Rows, process_index: int, process_count: int) -> Rows:
  """Every n-th of a list or array of rows: what one of n processes encodes.

  All processes read all files once before, for `fingerprint`.

  Raises:
    ValueError: there are fewer rows than processes.
  """
  if len(rows) < process_count:
    raise ValueError(
      f"data: {len(rows)} rows for {process_count} processes; every process "
      "needs a row"
    )
  return rows[process_index::process_count]
