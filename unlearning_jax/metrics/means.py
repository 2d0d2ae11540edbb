"""Means of one value a row, by group of prompts, with bootstrap intervals."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from unlearning_jax import statistics
from unlearning_jax.metrics import Estimate
from unlearning_jax.metrics.accuracy import ALL


class Value(NamedTuple):
  """What a mean is taken of."""

  group: str
  prompt: str
  value: float


def estimates(
  name: str, unit: str, model: str, rows: Mapping[str, Value], note: str = ""
) -> list[Estimate]:
  """The mean of each group, as `name/group`, and of all as `name/all`.

  Images of one prompt resemble each other, so the bootstrap draws prompts.

  Args:
    name: of the metric.
    unit: what `Estimate` calls a number that is no share.
    model: whose rows these are.
    rows: by id.
    note: what `method` says besides.
  """
  groups: dict[str, list[Value]] = {}
  for _, one in sorted(rows.items()):
    for group in (one.group, ALL):
      groups.setdefault(group, []).append(one)
  found = []
  for group, part in groups.items():
    values = np.array([one.value for one in part])
    prompts = [one.prompt for one in part]
    mean, low, high = statistics.paired_bootstrap(0 * values, values, prompts)
    found.append(
      Estimate(
        f"{name}/{group}",
        mean,
        low,
        high,
        n=len(part),
        unit=unit,
        method="bootstrap" + note,
        clusters=len(set(prompts)),
        model=model,
      )
    )
  return found
