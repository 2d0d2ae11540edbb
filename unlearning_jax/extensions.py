"""Things that are found by the name of a file, ours or a user's.

A judge, a metric, a protocol, an erasure or an attack is a module; its name is
the file's. Whoever has one of their own says where: `package.module:name`.
"""

import importlib
import pkgutil
from collections.abc import Iterable, Sequence
from typing import Any

from unlearning_jax.concepts import check_choice


def modules(package: str) -> tuple[str, ...]:
  """The public modules of a package, packages of helpers left out.

  Args:
    package: dotted, as `unlearning_jax.judges`.
  """
  found = pkgutil.iter_modules(importlib.import_module(package).__path__)
  return tuple(sorted(m.name for m in found if not m.name.startswith("_")))


def listing(package: str, names: Sequence[str]) -> list[str]:
  """A line for each module of a package: its name and what its docs begin with.

  Args:
    package: dotted, as `unlearning_jax.attacks`.
    names: the modules.
  """
  width = max(map(len, names))
  docs = (importlib.import_module(f"{package}.{n}").__doc__ for n in names)
  return [
    f"{name:{width}}  {(text or '').partition(chr(10))[0]}"
    for name, text in zip(names, docs, strict=True)
  ]


def worlds() -> tuple[str, ...]:
  """The names of the embedded worlds: packages that have a module `world`."""
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
  """The module of an embedded world: its model, judge, prompts, concepts.

  Args:
    name: of the world.
    part: another module of it, as how it is trained.

  Raises:
    ValueError: there is no such world; names the nearest.
  """
  check_choice("world", name, worlds())
  return importlib.import_module(f"unlearning_jax.{name}.{part}")


def named(what: str, name: str, known: Sequence[str] | Iterable[str]) -> Any:
  """A user's own object, `package.module:name`, or None for one of ours.

  Args:
    what: the setting, for messages.
    name: what the user typed.
    known: names of ours.

  Raises:
    ValueError: a name that is neither ours nor of that form; a module or an
      attribute that cannot be imported.
  """
  module, colon, attribute = str(name).partition(":")
  if not colon:
    check_choice(what, name, list(known))
    return None
  try:
    return getattr(importlib.import_module(module), attribute)
  except (ImportError, AttributeError) as error:
    raise ValueError(
      f"{what}={name!r}: {error}; give package.module:name, importable from "
      "here"
    ) from error


def module(what: str, name: str, package: str) -> Any:
  """One of ours, or a user's own: `package.module`, `package.module:name`.

  Args:
    what: the setting, for messages.
    name: what the user typed.
    package: where ours are.

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
  except ModuleNotFoundError as error:
    raise ValueError(
      f"{what}={name!r}: {error}; give one of {', '.join(known)}, or a module "
      "importable from here"
    ) from error
