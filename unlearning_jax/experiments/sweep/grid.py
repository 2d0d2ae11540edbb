"""The cells of a sweep and their ids."""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from unlearning_jax import settings
from unlearning_jax.experiments import common
from unlearning_jax.experiments.sweep import keys, verbs
from unlearning_jax.experiments.sweep.keys import EDIT, SEED

_ID = 12
# A comma that an even number of quotes follows stands outside of them.
_COMMA = re.compile(r',(?=(?:[^"]*"[^"]*")*[^"]*$)')


class Base(NamedTuple):
  """Where the settings of cells come from.

  Attributes:
    make: makes the plain settings, with options that are no settings, such as
      `concept`. It refuses an option that it does not know.
    options: keys that are options, also where a setting has the same name.
  """

  make: Callable[[Mapping[str, Any]], dict[str, Any]]
  options: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
  """A run of a sweep; `str` is its folder.

  Attributes:
    id: a hash of the verb and of every setting that changes results.
    values: key of the grid -> its value.
    given: the settings.
    edit: the path of the edit that it starts from; "" for none.
  """

  id: str
  values: Mapping[str, Any]
  given: Any
  edit: str = ""

  def __str__(self) -> str:
    return self.id

  @property
  def said(self) -> str:
    """Its values in words."""
    return ", ".join(f"{key}={value}" for key, value in self.values.items())


@dataclasses.dataclass(frozen=True, eq=False)
class Sweep:
  """A verb and its cells.

  Attributes:
    verb: the name of the verb.
    grid: key -> its values.
    cells: every combination of values; the last key's change first.
  """

  verb: str
  grid: Mapping[str, tuple[Any, ...]]
  cells: tuple[Cell, ...]


def parsed(texts: Sequence[str]) -> list[tuple[str, list[str]]]:
  """Keys and values of typed texts, as `hparams.lamb=0.1,0.5`.

  A value with a comma stands in double quotes.

  Raises:
    ValueError: a text has another form.
  """
  found = []
  for text in texts:
    key, equals, values = text.partition("=")
    if not (key and equals):
      raise ValueError(f"--grid={text}: must be key=value,value")
    if values.count('"') % 2:
      raise ValueError(f"--grid={text}: a quote has no end")
    parts = [part.strip() for part in _COMMA.split(values)] if values else []
    found.append((key.strip(), [_unquoted(part) for part in parts]))
  return found


def _unquoted(text: str) -> str:
  return text[1:-1] if re.fullmatch('"[^"]*"', text) else text


def plan(
  verb: str,
  base: Base,
  grid: Sequence[tuple[str, Sequence[Any]]],
  *,
  seeds: int = 1,
  texts: bool = False,
) -> Sweep:
  """The cells of a grid, with everything that can be wrong checked.

  Args:
    verb: what each cell runs, of `VERBS`.
    base: makes the plain settings.
    grid: keys with their values. A key is a setting, dotted where it is a
      nested one, or `edit`, or an option of `base`.
    seeds: runs of each combination, with seeds that count up.
    texts: whether values are typed texts; each becomes what its key needs.

  Raises:
    ValueError: a key is unknown, repeated, empty or changes no result; a value
      has the wrong type or is refused by the verb; the grid has no cells, or
      two that are the same run.
  """
  cls = verbs.find(verb).settings
  keys.check(verb, cls, grid, seeds, base.options)
  optional = [key for key, _ in grid if keys.is_option(cls, key, base.options)]
  first = {key: values[0] for key, values in grid if key in optional}
  start = _first(base, first)
  axes: dict[str, tuple[Any, ...]] = {}
  for key, values in grid:
    kinds = (str,)
    if key not in optional and key != EDIT:
      kinds = keys.kinds(cls, start, key)
    axes[key] = tuple(
      keys.typed(key, one, kinds, texts=texts) for one in values
    )
  if seeds > 1:
    was = start.get(SEED, 0)
    axes[SEED] = tuple(range(was, was + seeds))
  made = functools.cache(lambda pairs: _made(base, dict(pairs)))
  edits = {path: _hash(verb, path) for path in axes.get(EDIT, ())}
  cells = tuple(
    _cell(verb, made, dict(zip(axes, one, strict=True)), optional, edits)
    for one in itertools.product(*axes.values())
  )
  _check_twins(cells)
  return Sweep(verb, axes, cells)


def _first(base: Base, options: Mapping[str, Any]) -> dict[str, Any]:
  """The settings of the first cell; an option's error names what was meant."""
  try:
    return _made(base, options)
  except ValueError as error:
    plain: dict[str, Any] = {}
    # Without its options, a base may lack what it needs.
    with contextlib.suppress(ValueError):
      plain = base.make({})
    for key in options:
      if place := keys.place(plain, key):
        raise ValueError(
          f"--grid={key}: did you mean {place}? ({error})"
        ) from error
    raise


def _made(base: Base, options: Mapping[str, Any]) -> dict[str, Any]:
  try:
    return base.make(options)
  except ValueError as error:
    said = ",".join(f"{key}={value}" for key, value in options.items())
    raise ValueError(f"--grid={said}: {error}" if said else error) from error


def _hash(verb: str, path: str) -> str:
  """The hash of an edit or guidance.

  Raises:
    ValueError: there is none at that path that the verb can start from.
  """
  made = verbs.find(verb).read(path, f"--grid={EDIT}")
  return common.made_hash(made)


def _cell(
  verb: str,
  made: Callable[[tuple[tuple[str, Any], ...]], dict[str, Any]],
  values: Mapping[str, Any],
  optional: Sequence[str],
  edits: Mapping[str, str],
) -> Cell:
  """The cell of one combination of values."""
  own, edit = verbs.find(verb), values.get(EDIT, "")
  config = made(tuple((key, values[key]) for key in optional))
  for key, value in values.items():
    if key not in optional and key != EDIT:
      config = settings.changed(config, settings.nested(key, value))
  cell = Cell("", values, None, edit)
  try:
    given = settings.build(own.settings, config)
    own.check(given)
  except ValueError as error:
    raise ValueError(f"--grid: {cell.said}: {error}") from error
  mark = cell_id(verb, given, edits.get(edit, ""))
  return dataclasses.replace(cell, id=mark, given=given)


def cell_id(verb: str, given: Any, edit: str = "") -> str:
  """The id of a run: a hash of every setting that changes results.

  Settings and hyperparameters at their defaults do not count, so that a later
  version with more of them finds its cells again.

  Args:
    verb: what it runs, of `VERBS`.
    given: its settings.
    edit: the hash of the edit that it starts from.
  """
  parts = {"verb": verb, "edit": edit, "settings": _output(given)}
  text = json.dumps(parts, sort_keys=True, allow_nan=False)
  return hashlib.sha256(text.encode()).hexdigest()[:_ID]


def _output(given: Any) -> dict[str, Any]:
  """The settings that results depend on, without those at their defaults."""
  cls = type(given)
  hints = typing.get_type_hints(cls, include_extras=True)
  found = {}
  for field in dataclasses.fields(cls):
    value = getattr(given, field.name)
    marked = getattr(hints[field.name], "__metadata__", ())
    if settings.FREE in marked or value == _default(field):
      continue
    found[field.name] = _plain(value)
  made = verbs.hparams(given)
  if made is not None:
    usual = {
      one.name: _plain(_default(one)) for one in dataclasses.fields(made)
    }
    own = found.pop("hparams", {})
    if own := {k: v for k, v in own.items() if k not in usual or v != usual[k]}:
      found["hparams"] = own
  return found


def _default(field: dataclasses.Field[Any]) -> Any:
  if field.default_factory is not dataclasses.MISSING:
    return field.default_factory()
  return field.default


def _plain(value: Any) -> Any:
  if dataclasses.is_dataclass(value):
    return _output(value)
  if isinstance(value, Mapping):
    return {str(key): _plain(one) for key, one in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(one) for one in value]
  return value


def _check_twins(cells: Sequence[Cell]):
  """Refuses two cells that are the same run."""
  known: dict[str, Cell] = {}
  for cell in cells:
    twin = known.setdefault(cell.id, cell)
    if twin is not cell:
      raise ValueError(
        f"--grid: {twin.said} and {cell.said} are the same run; leave one out"
      )
