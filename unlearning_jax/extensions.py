"""Finds judges, metrics, protocols, erasures and attacks by name.

Each of ours is a module and has the name of its file. A user's own is named by
its place, `package.module:name`.
"""

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from unlearning_jax.concepts import check_choice


def modules(package: str) -> tuple[str, ...]:
  """The names of a package's public modules.

  Args:
    package: a dotted name, as `unlearning_jax.judges`.
  """
  found = pkgutil.iter_modules(importlib.import_module(package).__path__)
  return tuple(sorted(m.name for m in found if not m.name.startswith("_")))


def listing(package: str, names: Sequence[str]) -> list[str]:
  """A line for each module of a package: its name, and its docs' first line.

  Args:
    package: a dotted name, as `unlearning_jax.attacks`.
    names: the modules to list.
  """
  width = max(map(len, names))
  docs = (importlib.import_module(f"{package}.{n}").__doc__ for n in names)
  return [
    f"{name:{width}}  {(text or '').partition(chr(10))[0]}"
    for name, text in zip(names, docs, strict=True)
  ]


@functools.cache
def worlds() -> tuple[str, ...]:
  """The names of the embedded worlds: packages with a module `world`."""
  root = importlib.import_module(__package__ or "").__path__
  return tuple(
    package.name
    for package in pkgutil.iter_modules(root)
    if package.ispkg
    and any(
      module.name == "world"
      for module in pkgutil.iter_modules([f"{root[0]}/{package.name}"])
    )
  )


def world(name: str, part: str = "world") -> Any:
  """A module of an embedded world, which knows its model, judge and concepts.

  Args:
    name: the world.
    part: the module; others than `world` know how it was trained, say.

  Raises:
    ValueError: there is no such world.
  """
  check_choice("world", name, worlds())
  return importlib.import_module(f"unlearning_jax.{name}.{part}")


def named(what: str, name: str, known: Sequence[str] | Iterable[str]) -> Any:
  """A user's own object, `package.module:name`; None for a name of ours.

  Args:
    what: the name of the setting, for messages.
    name: the text that the user typed.
    known: the names of ours.

  Raises:
    ValueError: the name is neither of ours nor of that form, or cannot be
      imported.
  """
  module, colon, attribute = str(name).partition(":")
  if not colon:
    check_choice(what, name, list(known))
    return None
  try:
    return getattr(importlib.import_module(module), attribute)
  # Without a name before the colon, or with a dot first, Python raises others.
  except (ImportError, AttributeError, ValueError, TypeError) as error:
    raise ValueError(
      f"{what}={name!r:.200}: {error!s:.200}; give package.module:name of a "
      "module that is importable from here"
    ) from error


def module(what: str, name: str, package: str) -> Any:
  """A module of ours, or a user's own `package.module[:name]`.

  Args:
    what: the name of the setting, for messages.
    name: the text that the user typed.
    package: the dotted name of the package that holds ours.

  Raises:
    ValueError: as `named`.
  """
  known = modules(package)
  if ":" in name or not (name in known or "." in name):
    return named(what, name, known)
  try:
    return importlib.import_module(
      f"{package}.{name}" if name in known else name
    )
  except (ModuleNotFoundError, TypeError) as error:
    raise ValueError(
      f"{what}={name!r}: {error}; give one of {', '.join(known)}, or a module "
      "importable from here"
    ) from error


def options(
  what: str, name: str, made_by: Callable, more: Mapping[str, Any]
) -> dict[str, Any]:
  """The options in a name, `name~key=value,key=value`, each of its type.

  A type is that of the option's default. Several values are parted by `|`.

  Args:
    what: the name of the setting, for messages.
    name: the text that the user typed.
    made_by: the function that takes the options.
    more: options that are not in the name.

  Raises:
    ValueError: an option is unknown, or is not of its type.
  """
  text = str(name).partition("~")[2]
  known = _parameters(what, name, made_by)
  parts = [part.partition("=") for part in text.split(",")] if text else []
  found = {key: value for key, _, value in parts} | dict(more)
  for key, value in found.items():
    check_choice(f"{what}={name!r}: option", key, list(known))
    kind = type(known[key].default)
    if kind is tuple:
      found[key] = tuple(value.split("|") if isinstance(value, str) else value)
      continue
    try:
      found[key] = kind(value)
    except ValueError as error:
      raise ValueError(
        f"{what}={name!r}: {key}={value!r} is not a {kind.__name__}"
      ) from error
  lacking = [k for k, p in known.items() if _is_needed(p) and k not in found]
  if lacking:
    raise ValueError(
      f"{what}={name!r}: needs {', '.join(lacking)}; give it a default"
    )
  return found


def _parameters(
  what: str, name: str, made_by: Callable
) -> Mapping[str, inspect.Parameter]:
  """The parameters of a function that makes a judge or a metric."""
  try:
    return inspect.signature(made_by).parameters
  except (ValueError, TypeError) as error:
    raise ValueError(
      f"{what}={name!r}: is no function whose options can be read: {error}"
    ) from error


def _is_needed(parameter: inspect.Parameter) -> bool:
  several = (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
  none = parameter.default is parameter.empty
  return none and parameter.kind not in several
