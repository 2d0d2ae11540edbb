"""The ids of a study's cells and rows.

  uce/star/near/lora/none/0       a cell: one tuning run
  uce/star/near/lora/none/0@20    a row: the cell's model after 20 steps
  base/star/0[/near]              a row: the base; with a tuning set's prompts
  erased/uce/star/0[/near]        a row: the erased model; likewise
  uce/star/near/lora/none/0!      a row: why the cell failed
  edit/uce/star/0!                a row: why the erasure failed

`str` of a key is its id, and `parse` reads an id. Nothing else takes ids apart.
"""

import dataclasses
from typing import Any

from unlearning_jax.metrics.study import Condition


def _joined(*parts: object) -> str:
  return "/".join(str(part) for part in parts if part is not None)


@dataclasses.dataclass(frozen=True)
class Edit:
  """A method's erasure of one concept, with one seed."""

  method: str
  concept: str
  seed: int

  def __str__(self) -> str:
    return _joined("edit", self.method, self.concept, self.seed)

  @property
  def file(self) -> str:
    """The name of its file, without an ending."""
    return _file(self.method, self.concept, self.seed)


@dataclasses.dataclass(frozen=True)
class Base:
  """The base's images of a concept, or of a tuning set's prompts."""

  concept: str
  seed: int
  tuning_set: str | None = None

  def __str__(self) -> str:
    return _joined("base", self.concept, self.seed, self.tuning_set)


@dataclasses.dataclass(frozen=True)
class Erased:
  """The erased model's images of a concept, or of a tuning set's prompts."""

  method: str
  concept: str
  seed: int
  tuning_set: str | None = None

  def __str__(self) -> str:
    return _joined(
      "erased", self.method, self.concept, self.seed, self.tuning_set
    )


@dataclasses.dataclass(frozen=True)
class Cell:
  """One tuning run of a study."""

  method: str
  concept: str
  tuning_set: str
  algorithm: str
  defense: str
  seed: int

  def __str__(self) -> str:
    return _joined(*dataclasses.astuple(self))

  @property
  def condition(self) -> Condition:
    """What it shares with the same run under another seed."""
    return Condition(*dataclasses.astuple(self)[:-1])

  @property
  def edit(self) -> Edit:
    """The erasure that it starts from."""
    return Edit(self.method, self.concept, self.seed)

  def base(self, tuning_set: str | None = None) -> Base:
    """The base's images of its concept, or of its tuning set."""
    return Base(self.concept, self.seed, tuning_set)

  def erased(self, tuning_set: str | None = None) -> Erased:
    """The erased model's images of its concept, or of its tuning set."""
    return Erased(self.method, self.concept, self.seed, tuning_set)

  def at(self, step: int) -> "Point":
    """Its model after that many steps."""
    return Point(self, step)

  @property
  def file(self) -> str:
    """The name of its folder."""
    return _file(*dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True)
class Point:
  """A cell after some steps; step 0 holds what is measured before tuning."""

  cell: Cell
  step: int

  def __str__(self) -> str:
    return f"{self.cell}@{self.step}"


@dataclasses.dataclass(frozen=True)
class Failure:
  """The end of a cell or an edit that failed."""

  of: Cell | Edit

  def __str__(self) -> str:
    return f"{self.of}!"


Key = Cell | Point | Base | Erased | Edit | Failure


def parse(text: str) -> Key:
  """The key of an id.

  Raises:
    ValueError: the text is no id of a study.
  """
  name, mark, step = text.rpartition("@")
  found = _named(name if mark else text.removesuffix("!"))
  if text.endswith("!") and isinstance(found, Cell | Edit):
    found = Failure(found)
  elif mark and isinstance(found, Cell) and step.isdecimal():
    found = Point(found, int(step))
  if found is None or str(found) != text:
    raise ValueError(f"{text!r} names no cell or row of a study")
  return found


def _named(text: str) -> Cell | Base | Erased | Edit | None:
  """The key of an id without a mark, or None; the number of parts decides."""
  first, *rest = text.split("/")
  if len(rest) == 5 and rest[-1].isdecimal():
    concept, set_, algorithm, defense, seed = rest
    return Cell(first, concept, set_, algorithm, defense, int(seed))
  kinds = {"base": (Base, 1), "erased": (Erased, 2), "edit": (Edit, 2)}
  kind, names = kinds.get(first, (None, 0))
  if kind is None or not names < len(rest) <= names + 2:
    return None
  seed, more = rest[names], rest[names + 1 :]
  if not seed.isdecimal() or (kind is Edit and more):
    return None
  values: list[Any] = [*rest[:names], int(seed), *more]
  return kind(*values)


def _file(*parts: object) -> str:
  return "-".join(map(str, parts)).replace("/", "-").replace(" ", "_")
