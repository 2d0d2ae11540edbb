"""Keys of a grid, and the types of their values."""

import ast
import contextlib
import dataclasses
import difflib
import typing
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from unlearning_jax import settings
from unlearning_jax.experiments.sweep import verbs

EDIT, SEED, METHOD = "edit", "seed", "method"


def check(
  verb: str,
  cls: type,
  grid: Sequence[tuple[str, Sequence[Any]]],
  seeds: int,
  options: Set[str] = frozenset(),
):
  """Refuses keys and values that make no grid."""
  keys = [key for key, _ in grid]
  if seeds < 1:
    raise ValueError(f"--seeds={seeds}: must be at least 1")
  if not keys and seeds == 1:
    raise ValueError(
      "--grid: is empty; give a key with its values, as --grid=seed=0,1"
    )
  for key, values in grid:
    if keys.count(key) > 1:
      raise ValueError(
        f"--grid={key}: is given twice; give all its values in one"
      )
    if not [*values]:
      raise ValueError(f"--grid={key}: has no values; as --grid={key}=a,b")
    if "" in values:
      raise ValueError(f"--grid={key}: one of its values is empty")
    for free in () if key in options else settings.free(cls):
      if f"{key}.".startswith(f"{free}."):
        raise ValueError(
          f"--grid={key}: no result of {verb} depends on it, so its cells "
          f"would be the same; give it once, --config.{key}=..."
        )
  if seeds > 1 and SEED in keys:
    raise ValueError("--seeds, --grid=seed: give one of them")
  if seeds > 1 and SEED not in settings.marks(cls):
    raise ValueError(f"--seeds={seeds}: {verb} has no seed of its own")
  if EDIT in keys and not verbs.find(verb).takes_edit:
    raise ValueError(f"--grid={EDIT}: {verb} starts from the base, not an edit")


def is_option(cls: type, key: str, options: Set[str]) -> bool:
  """Whether a key is an option of the base, and no setting.

  Args:
    options: those that the base is sure of.

  Raises:
    ValueError: it can be neither.
  """
  known = [field.name for field in dataclasses.fields(cls)]
  first = key.partition(".")[0]
  if key in options:
    return True
  if key == EDIT or first in known:
    return False
  if "." in key:
    raise ValueError(f"--grid={key}: no such setting{_nearest(first, known)}")
  return True


def _nearest(name: str, known: Iterable[str]) -> str:
  near = difflib.get_close_matches(name, [*known], n=1, cutoff=0.4)
  return f"; did you mean {near[0]}?" if near else f"; allowed: {[*known]}"


def place(config: Mapping[str, Any], key: str) -> str:
  """The dotted key of a setting that is called almost so; "" for none."""
  found = {key: key for key in config}
  for outer, value in config.items():
    if isinstance(value, Mapping):
      found |= {inner: f"{outer}.{inner}" for inner in value}
  near = difflib.get_close_matches(key, [*found], n=1, cutoff=0.8)
  return found[near[0]] if near else ""


def kinds(
  cls: type, config: Mapping[str, Any], key: str
) -> tuple[type, ...] | None:
  """The types that a setting may have; None where nothing says so.

  Raises:
    ValueError: there is no such setting, or a list or mapping lies there.
  """
  hint: Any = cls
  value: Any = config
  for name in key.split("."):
    inner = settings.dataclass_in(hint)
    hints = typing.get_type_hints(inner) if inner else {}
    if inner and name not in hints:
      raise ValueError(f"--grid={key}: no such setting{_nearest(name, hints)}")
    hint = hints.get(name)
    value = value.get(name) if isinstance(value, Mapping) else None
  found = settings.kinds(hint)
  if found is None and value is not None:
    found = (type(value),)
  if isinstance(value, Mapping):
    inside = f", as --grid={key}.{next(iter(value))}=..." if value else ""
    raise ValueError(f"--grid={key}: holds several settings; name one{inside}")
  return found


def typed(
  key: str, value: Any, kinds: tuple[type, ...] | None, *, texts: bool
) -> Any:
  """A value of a grid, of the type that its key needs.

  Args:
    key: the key, for messages.
    value: a typed text, or a value from Python.
    kinds: the types that are allowed; None for any.
    texts: whether the value is a text.

  Raises:
    ValueError: it is of another type.
  """
  if texts and kinds and not {*kinds} & {str, int, float, bool, type(None)}:
    raise ValueError(
      f"--grid={key}: holds a list, which a flag cannot name; take an option "
      "of the config, or ul.sweep"
    )
  found = _read(value, kinds) if texts else value
  wide = (*kinds, int) if kinds and float in kinds else kinds
  flag = isinstance(found, bool) and wide is not None and bool not in wide
  if wide is not None and (flag or not isinstance(found, wide)):
    names = " or ".join(kind.__name__ for kind in kinds or ())
    raise ValueError(f"--grid={key}: {value!r} must be {names}")
  whole = isinstance(found, int) and not isinstance(found, bool)
  # 1 and 1.0 are one value, and must have one id.
  return float(found) if whole and kinds and int not in kinds else found


def _read(text: str, kinds: tuple[type, ...] | None) -> Any:
  """What a text says: a number, a flag or None where these are allowed."""
  if kinds == (str,):
    return text
  known = {"true": True, "false": False, "none": None}
  if text.lower() in known:
    return known[text.lower()]
  found = text
  with contextlib.suppress(ValueError, SyntaxError):
    found = ast.literal_eval(text)
  return found if isinstance(found, int | float) else text
