"""Metrics: images and judged rows to numbers. One metric, one file.

A module of this package that is a metric has `METRIC`, a `Metric`; whoever has
one of their own names it as `package.module:name`. A state is a tree of numpy
arrays, numbers, texts and lists that JSON and `merge` can take: states of other
batches, devices and processes are merged, in any order, before `compute`.

A row is a mapping with at least `id` (its own within its model), `model` (which
drew it), `group`, `prompt` and `seed`; with a judge also `judged` (head ->
label) and, where something is looked for, `shown` and `score`.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from unlearning_jax import extensions

Row = Mapping[str, Any]
State = Any
Images = UInt8[np.ndarray, "n h w 3"]
VERBS = ("attack", "evaluate", "resurgence")


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A number with what it rests on.

  Attributes:
    name: of the number, `metric/part` where a metric has several.
    value: None where it is undefined; `failed` then says why.
    low: of its interval; None where the metric has none (`method` says why).
    high: likewise.
    k: how many of `n` counted, for a rate.
    n: images or rows that it is of.
    unit: "" for a share.
    method: of the interval: wilson, bootstrap, ...
    level: of the interval.
    clusters: what was drawn again together, as prompts; 0 for single rows.
    failed: why there is no value.
    model: whose it is, where a metric tells several models apart.
  """

  name: str
  value: float | None
  low: float | None = None
  high: float | None = None
  k: int | None = None
  n: int = 0
  unit: str = ""
  method: str = ""
  level: float = 0.95
  clusters: int = 0
  failed: str = ""
  model: str = ""

  def plain(self) -> dict[str, Any]:
    """Its fields as JSON values, those left out that say nothing."""
    number = ("name", "value", "low", "high", "k", "n")
    return {
      field.name: value
      for field in dataclasses.fields(self)
      for value in [getattr(self, field.name)]
      if field.name in number or value != field.default
    }


@dataclasses.dataclass(frozen=True)
class Metric:
  """How a number is made of images, a batch at a time.

  Attributes:
    name: the module's.
    init: the state before the first image.
    update: (state, images uint8 (n, h, w, 3), n rows) -> state; neither is
      changed in place.
    merge: (state, state) -> state, of disjoint rows.
    compute: a state -> its estimates.
    images: whether it reads images at all; rows alone are then enough.
    verbs: the experiments whose rows it can read.
  """

  name: str
  init: Callable[[], State]
  update: Callable[[State, Images, Sequence[Row]], State]
  merge: Callable[[State, State], State]
  compute: Callable[[State], list[Estimate]]
  images: bool = True
  verbs: tuple[str, ...] = VERBS

  def measure(
    self,
    rows: Sequence[Row],
    images: Images | None = None,
  ) -> list[Estimate]:
    """All of a state in one call.

    Raises:
      ValueError: no rows, or no images though it reads them.
    """
    if self.images and images is None and rows:
      raise ValueError(f"metric {self.name}: reads images, and got rows alone")
    given = (
      np.zeros((len(rows), 0, 0, 3), np.uint8) if images is None else images
    )
    return self.result(self.update(self.init(), given, rows), len(rows))

  def result(self, state: State, n: int) -> list[Estimate]:
    """`compute` of a state of `n` rows.

    Raises:
      ValueError: none; nothing can be said of no images.
    """
    if not n:
      raise ValueError(
        f"metric {self.name}: got no images; draw some (per_group, others, "
        "prompts) or leave the metric out"
      )
    return self.compute(state)


Kept = Mapping[str, Mapping[str, Any]]


def keep(state: Kept, rows: Sequence[Row], of: Callable[[Row], Any]) -> Kept:
  """A state that keeps something of each row, by model and id."""
  found: dict[str, dict[str, Any]] = {}
  for row in rows:
    found.setdefault(row["model"], {})[str(row["id"])] = of(row)
  return unite(state, found)


def unite(first: Kept, second: Kept) -> Kept:
  """`merge` of states that `keep` made; a row that both have counts once."""
  models = dict.fromkeys((*first, *second))
  return {m: {**first.get(m, {}), **second.get(m, {})} for m in models}


def names() -> tuple[str, ...]:
  """The metrics that ship."""
  return tuple(
    name
    for name in extensions.modules(__name__)
    if hasattr(importlib.import_module(f"{__name__}.{name}"), "METRIC")
  )


def load(name: str) -> Metric:
  """A metric by its name, or a user's own, `package.module:name`.

  Raises:
    ValueError: no such metric, with the nearest; or what the name stands for
      is none.
  """
  found: Any = extensions.named("metric", name, names())
  if found is None:
    found = importlib.import_module(f"{__name__}.{name}").METRIC
  if not isinstance(found, Metric):
    kind = type(found).__name__
    raise ValueError(f"metric={name!r}: is {kind}, not a Metric")
  return found
