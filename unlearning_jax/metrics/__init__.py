"""Metrics turn images and judged rows into numbers. One metric, one file.

A module of this package that is a metric has a `METRIC`, which is a `Metric`.
One with options or weights has a function `metric(**options)` that makes a
`Metric`, its `VERBS`, and what it `NEEDS`. Name your own, of either kind, as
`package.module:name`.

  load("accuracy")
  load("fid~stack=clean,reference=photographs")

A state is a tree of numpy arrays, numbers, texts and lists, so that JSON can
hold it. States of several batches, devices and processes merge in any order
before `compute`.

A row is a mapping with at least `id` (unique within its model), `model` (which
drew it), `group`, `prompt` and `seed`. A judged row also has `judged` (head ->
label) and, if the judge looked for something, `shown` and `score`.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from unlearning_jax import extensions
from unlearning_jax.judges import Judge

Row = Mapping[str, Any]
State = Any
Images = UInt8[np.ndarray, "n h w 3"]
VERBS = ("attack", "evaluate", "measure", "resurgence")


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A number with its interval and its counts.

  Attributes:
    name: the metric's, or `metric/part` if it has several numbers.
    value: the number; None if it is undefined, and then `failed` says why.
    low: the interval's lower end; None without one, and `method` says why.
    high: the interval's upper end.
    k: for a rate, how many of the `n` counted.
    n: images or rows.
    unit: the value's unit; "" for a share.
    method: how the interval was computed, as wilson or bootstrap.
    level: the interval's confidence level.
    clusters: groups of rows that a bootstrap draws whole, as prompts; 0 if it
      draws single rows.
    failed: why there is no value.
    model: the model's name; "" if the metric does not tell models apart.
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
    """The fields as JSON values, without those at their defaults."""
    number = ("name", "value", "low", "high", "k", "n")
    return {
      field.name: value
      for field in dataclasses.fields(self)
      for value in [getattr(self, field.name)]
      if field.name in number or value != field.default
    }


@dataclasses.dataclass(frozen=True)
class Metric:
  """Functions that turn images into numbers, a batch at a time.

  Attributes:
    name: what reports call it.
    init: makes the state before the first image.
    update: (state, images uint8 (n, h, w, 3), n rows) -> a new state.
    merge: (state, state) -> state; their rows differ.
    compute: state -> estimates.
    images: whether the metric reads images; if not, rows are enough.
    verbs: the experiments whose rows it can read.
    needs: what it cannot do without and not every experiment has: `prompt` of
      a row, or `base`, the base's own images.
    identity: what a record keeps of it: the hashes of its weights and of its
      reference. Another one may not go on with the same run.
  """

  name: str
  init: Callable[[], State]
  update: Callable[[State, Images, Sequence[Row]], State]
  merge: Callable[[State, State], State]
  compute: Callable[[State], list[Estimate]]
  images: bool = True
  verbs: tuple[str, ...] = VERBS
  needs: tuple[str, ...] = ()
  identity: str = ""

  def measure(
    self,
    rows: Sequence[Row],
    images: Images | None = None,
  ) -> list[Estimate]:
    """The estimates of these rows.

    Raises:
      ValueError: no rows, or no images for a metric that reads them.
    """
    if not rows:
      return self.result(self.init(), 0)
    if self.images and images is None:
      raise ValueError(
        f"metric {self.name}: reads images, and got rows alone; give images"
      )
    given = (
      np.zeros((len(rows), 0, 0, 3), np.uint8) if images is None else images
    )
    return self.result(self.update(self.init(), given, rows), len(rows))

  def result(self, state: State, n: int) -> list[Estimate]:
    """`compute` of a state with `n` rows.

    Raises:
      ValueError: `n` is 0.
    """
    if not n:
      raise ValueError(
        f"metric {self.name}: got no images; draw some "
        "(rows_per_group, other_rows, "
        "prompts) or leave the metric out"
      )
    return self.compute(state)


Kept = Mapping[str, Mapping[str, Any]]


def keep(state: Kept, rows: Sequence[Row], of: Callable[[Row], Any]) -> Kept:
  """Adds `of` of each row to a state, by model and id."""
  found: dict[str, dict[str, Any]] = {}
  for row in rows:
    found.setdefault(row["model"], {})[str(row["id"])] = of(row)
  return unite(state, found)


def unite(first: Kept, second: Kept) -> Kept:
  """Merges two states of `keep`; a row in both counts once."""
  models = dict.fromkeys((*first, *second))
  return {m: {**first.get(m, {}), **second.get(m, {})} for m in models}


def names() -> tuple[str, ...]:
  """The metrics that ship."""
  return tuple(_modules())


def module(name: str) -> Any:
  """The module of a metric that ships."""
  return _modules()[_spelled(name)]


def load(name: str, **options: Any) -> Metric:
  """A metric by its name, or your own as `package.module:name`.

  Args:
    name: as `fid`, or with options, `fid~stack=clean`.
    **options: more of them, as `judges_dir`, where weights lie.

  Raises:
    ValueError: an unknown metric or option (the message names the nearest), an
      object that is no `Metric`, or a file that is missing.
  """
  base = str(name).partition("~")[0]
  own = ":" in base
  spelled = base if own else _spelled(base)
  found: Any = extensions.named("metric", spelled, names())
  if not own:
    kept = _modules()[spelled]
    found = getattr(kept, "METRIC", None) or kept.metric
  # A judge can be called too.
  if callable(found) and not isinstance(found, Judge):
    found = found(**extensions.options("metric", name, found, options))
  elif "~" in str(name) or options:
    raise ValueError(f"metric={name!r}: {base} has no options")
  if not isinstance(found, Metric):
    kind = type(found).__name__
    raise ValueError(
      f"metric={name!r}: is {kind}, not a Metric; name an object of that type"
    )
  return found


def reading(verb: str) -> list[str]:
  """The metrics that ship and can read the rows of an experiment."""
  verbs = {
    name: one.METRIC.verbs if hasattr(one, "METRIC") else one.VERBS
    for name, one in _modules().items()
  }
  return [name for name, known in verbs.items() if verb in known]


def _spelled(name: str) -> str:
  """The name of a module that ships, however it is spelled."""
  spellings = {one.replace("_", "-"): one for one in names()}
  return spellings.get(name.replace("_", "-"), name)


def _modules() -> dict[str, Any]:
  found = {
    name: importlib.import_module(f"{__name__}.{name}")
    for name in extensions.modules(__name__)
  }
  ready = {n: one for n, one in found.items() if hasattr(one, "METRIC")}
  made = {
    name.replace("_", "-"): one
    for name, one in found.items()
    if hasattr(one, "metric")
  }
  return dict(sorted((ready | made).items()))
