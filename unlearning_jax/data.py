"""Training batches as a pure function of the step, so a resume is exact."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Shaped


@dataclasses.dataclass(frozen=True)
class Batches:
  """Shuffled batches of in-memory rows; `batches[step]` never depends on past.

  Rows are first split over processes, then shuffled anew each epoch by
  (seed, epoch), so that no row is drawn by two processes. Left out are the rows
  that do not divide among the processes, and of an epoch a last, short batch.

  Attributes:
    arrays: name to array; all have the same number of rows.
    batch_size: rows per batch of this process.
    seed: of the shuffling.
    process_index: which share of the rows is this process's.
    process_count: how many processes share the rows.
  """

  arrays: Mapping[str, Shaped[np.ndarray, "n ..."]]
  batch_size: int
  seed: int = 0
  process_index: int = 0
  process_count: int = 1

  def __post_init__(self):
    sizes = {name: len(array) for name, array in self.arrays.items()}
    if not sizes:
      raise ValueError("data: no arrays")
    if not 0 <= self.process_index < self.process_count:
      raise ValueError(
        f"process_index={self.process_index}: must be from 0 to "
        f"{self.process_count - 1}"
      )
    if len(set(sizes.values())) != 1:
      raise ValueError(f"data: arrays of unequal length: {sizes}")
    if not 1 <= self.batch_size <= self._rows:
      raise ValueError(
        f"batch_size={self.batch_size}: must be between 1 and the "
        f"{self._rows} rows of each process"
      )

  @property
  def _rows(self) -> int:
    # The same for every process, or their steps would fall out of line.
    return len(next(iter(self.arrays.values()))) // self.process_count

  @property
  def steps_per_epoch(self) -> int:
    """Batches in one pass over this process's rows."""
    return self._rows // self.batch_size

  def indices(self, step: int) -> Shaped[np.ndarray, "b"]:
    """The rows of batch `step`."""
    epoch, position = divmod(step, self.steps_per_epoch)
    order = np.random.default_rng((self.seed, epoch)).permutation(self._rows)
    here = order[position * self.batch_size :][: self.batch_size]
    return here * self.process_count + self.process_index

  def __getitem__(self, step: int) -> dict[str, Shaped[np.ndarray, "b ..."]]:
    rows = self.indices(step)
    return {name: array[rows] for name, array in self.arrays.items()}
