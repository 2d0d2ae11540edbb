"""Names of methods, attacks, protocols and concepts; judges and metrics."""

from typing import Any

from unlearning_jax import attacks as attacks_
from unlearning_jax import erasures, extensions, judges, lists, metrics
from unlearning_jax import protocols as protocols_
from unlearning_jax.api.results import Table
from unlearning_jax.judges import Judge
from unlearning_jax.metrics import Metric
from unlearning_jax.protocols import Protocol
from unlearning_jax.report import published as published_


def methods() -> tuple[str, ...]:
  """The names of the erasures, for `ul.erase(..., method=)`."""
  return erasures.methods()


def attacks() -> tuple[str, ...]:
  """The names of the attacks, for `ul.attack(..., method=)`."""
  return attacks_.methods()


def protocols() -> tuple[str, ...]:
  """The names of the protocols, for `ul.evaluate(..., protocol=)`."""
  return protocols_.names()


def concepts(source: str = "") -> dict[str, tuple[str, ...]]:
  """The names that can be erased.

  Args:
    source: an embedded world, as "shapes", for its classes by task; "" for the
      published lists of phrases by name.

  Raises:
    ValueError: there is no such world.
  """
  if source:
    return extensions.world(source).concepts()
  return {name: lists.load(name) for name in lists.names()}


def judge(name: str, **options: Any) -> Judge:
  """A judge by its name, or your own, `package.module:name`.

  Args:
    name: the name, as `nudenet`, or with options, `nudenet~threshold=0.5`.
    **options: more options, such as `judges_dir`, the folder of the weights.

  Raises:
    ValueError: there is no such judge or option, or weights or a package that
      it needs are missing.
  """
  return judges.load(name, **options)


def metric(name: str) -> Metric:
  """A metric by its name, or your own, `package.module:name`.

  Raises:
    ValueError: there is no such metric.
  """
  return metrics.load(name)


def protocol(name: str) -> Protocol:
  """A protocol by its name, as `shapes-star` or `shapes-star~rows_per_group=2`.

  Raises:
    ValueError: there is no such protocol, or its content was changed.
  """
  return protocols_.find(name)


def published(name: str) -> Table:
  """A published table, with the source and version of each of its lines.

  Args:
    name: `unlearned_dm`, `mace_objects`, `mace_i2p`, `mace_artists` or
      `unlearncanvas`.

  Raises:
    ValueError: there is no such table.
  """
  lines = published_.load(name)
  columns = ("method", "concept", *published_.numbers(lines), "source")
  return Table(
    name,
    columns,
    tuple(
      tuple("–" if line[c] is None else f"{line[c]}" for c in columns)
      for line in lines
    ),
    rows=tuple(lines),
  )
