"""The images that lanes are tuned on, and the batches of a step."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from unlearning_jax.erasures.resalign import lanes
from unlearning_jax.erasures.salun import sets


@dataclasses.dataclass(frozen=True)
class Counted:
  """Batches that know their step."""

  steps: sets.Steps

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    batch = self.steps[step]
    return batch | {"step": np.full(len(batch["remain"]), step, np.int32)}


def check_sets(names: Sequence[str], phrases: int) -> int:
  """How many sets of images the lanes name.

  Args:
    names: the lanes.
    phrases: the number of those that remain.

  Raises:
    ValueError: more than there are phrases that remain.
  """
  parsed = lanes.parse(names, every_kind=True)
  count = int(max(*parsed.of, *parsed.prior)) + 1
  if count > phrases:
    raise ValueError(
      f"lanes: they name {count} sets of images, but {phrases} phrases remain; "
      "preserve more phrases, or end every lane in '/0'"
    )
  return count


def tuning(found: sets.Sets, count: int) -> dict[str, np.ndarray]:
  """Deals the images that remain out to sets, by their phrase."""
  pair = found.remain["pair"]
  rows = [np.flatnonzero(pair % count == i) for i in range(count)]
  sizes = np.array([len(row) for row in rows])
  padded = np.stack([np.resize(row, sizes.max()) for row in rows])
  return {**found.remain, "rows": padded, "sizes": sizes}
