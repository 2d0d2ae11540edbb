"""Settings of an experiment: frozen dataclasses that check themselves.

Every field says whether results depend on it:

  steps: Output[int] = 50     another value is another run
  lanes: Free[int] = 8        a layout of the work, which a resume may change

`build` makes settings from the plain values of a config; `plain` goes back. A
class checks its values in `__post_init__` and names key, value and remedy.
"""

import dataclasses
import difflib
import math
import numbers
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from unlearning_jax import renamed

T = TypeVar("T")
# Annotation -> the class of its values.
_KINDS: dict[Any, type] = {
  bool: bool,
  int: numbers.Integral,
  float: numbers.Real,
  str: str,
  types.NoneType: types.NoneType,
}
OUTPUT, FREE = "output", "free"
Output = Annotated[T, OUTPUT]
Free = Annotated[T, FREE]


def build(cls: type[T], values: Mapping[str, Any], key: str = "") -> T:
  """Builds settings from plain values, with nested settings too.

  Args:
    cls: a frozen dataclass. Its fields may hold settings, or tuples or mappings
      of them.
    values: values by field. A missing one takes its default. Lists become
      tuples.
    key: the key of `values` in a larger config, for messages.

  Raises:
    ValueError: a key is unknown or missing, or the class refuses a value.
  """
  hints = typing.get_type_hints(cls)
  known = {field.name for field in dataclasses.fields(cls)}  # pyright: ignore
  found = {}
  for name, value in values.items():
    place = f"{key}.{name}" if key else name
    if name not in known:
      place = place[:200]
      if new := renamed.now(name, known):
        raise ValueError(f"{place}: {name} is now {new}")
      hint = _nearest(name, value, hints)
      raise ValueError(f"{place}: no such setting of {cls.__name__}; {hint}")
    try:
      found[name] = _frozen(_built(hints[name], value, place))
    except TypeError as error:
      _check_holder(hints[name], value, place)
      raise ValueError(f"{place}={repr(value)[:80]}: {error}") from error
  for name in needed(cls):
    if name not in values:
      place = f"{key}.{name}" if key else name
      raise ValueError(f"{place}: is missing; {cls.__name__} needs it")
  try:
    return cls(**found)
  # A mapping or list inside holds what the class does not expect.
  except (TypeError, AttributeError, LookupError) as error:
    where = f"{key}: " if key else ""
    for name, value in found.items():
      _check_holder(hints[name], value, f"{key}.{name}" if key else name)
    raise ValueError(
      f"{where}{cls.__name__} has a value of the wrong kind: {error}"
    ) from error


def needed(cls: type) -> list[str]:
  """The fields of a settings class that have no default."""
  none = dataclasses.MISSING
  return [
    field.name
    for field in dataclasses.fields(cls)
    if field.default is none and field.default_factory is none
  ]


def fits(cls: type, values: Mapping[str, Any]) -> bool:
  """Whether values have what a settings class needs, and nothing else."""
  known = {field.name for field in dataclasses.fields(cls)}
  return {*needed(cls)} <= {*values} <= known


def changed(
  values: Mapping[str, Any], changes: Mapping[str, Any]
) -> dict[str, Any]:
  """Plain values with changes; nested mappings are merged."""
  found = dict(values)
  for name, value in changes.items():
    was = found.get(name)
    if isinstance(was, Mapping) and isinstance(value, Mapping):
      value = changed(was, value)
    found[name] = value
  return found


def nested(key: str, value: Any) -> dict[str, Any]:
  """The change that a dotted key stands for: `a.b` is {"a": {"b": value}}."""
  for part in reversed(key.split(".")):
    value = {part: value}
  return value


def kinds(hint: Any) -> tuple[type, ...] | None:
  """The types of a field of numbers, texts or flags; None for any other.

  Args:
    hint: the field's annotation.
  """
  union = typing.get_origin(hint) in (typing.Union, types.UnionType)
  options = typing.get_args(hint) if union else (hint,)
  return options if {*options} <= {*_KINDS} else None


def _nearest(name: str, value: object, hints: Mapping[str, Any]) -> str:
  """The hint for an unknown name: a similar one, or the mapping that has it."""
  for outer, hint in hints.items():
    inner = dataclass_in(hint)
    fields = (
      {field.name for field in dataclasses.fields(inner)} if inner else ()
    )
    if new := name if name in fields else renamed.now(name, fields):
      return f"did you mean {outer}={ {new: value} }?"
  near = difflib.get_close_matches(name, hints, n=1, cutoff=0.4)
  return f"did you mean {near[0]}?" if near else f"allowed: {', '.join(hints)}"


def _check(hint: Any, value: object, place: str):
  """Refuses a number, text or flag of the wrong type."""
  options = kinds(hint)
  if options is None:
    return
  flag = isinstance(value, bool) and bool not in options
  if flag or not isinstance(value, tuple(_KINDS[o] for o in options)):
    names = " or ".join(getattr(o, "__name__", str(o)) for o in options)
    # The repr of an object may take pages.
    raise ValueError(f"{place}={repr(value)[:80]}: must be {names}")


def _check_holder(hint: Any, value: object, place: str):
  """Refuses what is no list, mapping or settings where there must be one."""
  union = typing.get_origin(hint) in (typing.Union, types.UnionType)
  allowed: list[tuple[str, tuple[type, ...]]] = []
  for one in typing.get_args(hint) if union else (hint,):
    kind = typing.get_origin(one) or one
    if kind is tuple:
      allowed.append(("a list", (list, tuple)))
    elif kind in (Mapping, dict):
      allowed.append(("a mapping", (Mapping,)))
    elif dataclasses.is_dataclass(kind) and isinstance(kind, type):
      allowed.append(("a mapping", (Mapping, kind)))
    elif kind in _KINDS:
      allowed.append((str(getattr(kind, "__name__", kind)), (_KINDS[kind],)))
    else:
      return
  if not any(isinstance(value, good) for _, good in allowed):
    said = " or ".join(dict.fromkeys(name for name, _ in allowed))
    raise ValueError(f"{place}={repr(value)[:80]}: must be {said}")


def _built(hint: Any, value: Any, place: str) -> Any:
  """A value in which mappings have become the settings of its annotation."""
  _check(hint, value, place)
  inner = dataclass_in(hint)
  if inner is not None and isinstance(value, Mapping):
    return build(inner, value, place)
  kind, items = typing.get_origin(hint), typing.get_args(hint)
  inner = next(filter(None, map(dataclass_in, items)), None)
  if inner is None or kind in (None, typing.Union, types.UnionType):
    return value
  if isinstance(value, Mapping):
    return {
      name: _item(inner, one, f"{place}.{name}") for name, one in value.items()
    }
  return [
    _item(inner, one, f"{place}[{i}]") if isinstance(one, Mapping) else one
    for i, one in enumerate(value)
  ]


def _item(cls: type[T], value: Any, place: str) -> T:
  """One of several settings; an error says which one."""
  try:
    return build(cls, value, place)
  except ValueError as error:
    if str(error).startswith(place):
      raise
    raise ValueError(f"{place}: {error}") from error


def check_numbers(
  settings: object,
  *,
  counts: Sequence[str] = (),
  positive: Sequence[str] = (),
  from_zero: Sequence[str] = (),
  finite: Sequence[str] = (),
):
  """Refuses numbers that are out of bounds, NaN included.

  Args:
    counts: names of fields that hold whole numbers from 1.
    positive: those of finite numbers above 0.
    from_zero: those of finite numbers from 0.
    finite: those of any finite number.

  Raises:
    ValueError: names the first such field, its value and what is allowed.
  """
  for names, allowed, good in (
    (counts, "whole numbers from 1", lambda x: x >= 1 and x % 1 == 0),
    (positive, "finite numbers above 0", lambda x: x > 0),
    (from_zero, "finite numbers from 0", lambda x: x >= 0),
    (finite, "finite numbers", lambda x: True),
  ):
    for name in names:
      value = getattr(settings, name)
      if not (math.isfinite(value) and good(value)):
        raise ValueError(f"{name}={value}; allowed: {allowed}")


def plain(settings: Any) -> dict[str, Any]:
  """The settings as plain values, by field."""
  return dataclasses.asdict(settings)


def marks(cls: type, key: str = "") -> dict[str, str | None]:
  """Each field of a settings class -> `output`, `free`, or None if unmarked.

  The fields of nested settings have dotted keys, such as `sampling.sampler`.
  """
  found: dict[str, str | None] = {}
  for name, hint in typing.get_type_hints(cls, include_extras=True).items():
    place = f"{key}.{name}" if key else name
    metadata = getattr(hint, "__metadata__", ())
    mark = next((m for m in metadata if m in (OUTPUT, FREE)), None)
    inner = dataclass_in(hint)
    if inner is not None and mark is None:
      found |= marks(inner, place)
    else:
      found[place] = mark
  return found


def free(cls: type) -> tuple[str, ...]:
  """The dotted keys of a settings class that no result depends on.

  Where settings lie in a mapping, `*` stands for its keys: `attacks.*.lanes`.
  """
  found = [key for key, mark in marks(cls).items() if mark == FREE]
  for name, hint in typing.get_type_hints(cls).items():
    if typing.get_origin(hint) is Mapping:
      inner = dataclass_in(typing.get_args(hint)[1])
      found += [f"{name}.*.{key}" for key in (free(inner) if inner else ())]
  return tuple(found)


def dataclass_in(hint: Any) -> Any:
  """The dataclass of an annotation, also of one that allows None.

  Returns:
    The class; None where the annotation has none.
  """
  if typing.get_origin(hint) is Annotated:
    hint = hint.__origin__
  options = [hint]
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    options = list(typing.get_args(hint))
  return next((o for o in options if dataclasses.is_dataclass(o)), None)


def _frozen(value: Any) -> Any:
  if isinstance(value, list | tuple):
    return tuple(_frozen(item) for item in value)
  return value
