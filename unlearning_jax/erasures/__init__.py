"""Concept erasure: one paper, one module, chosen by the module's name.

Every module has

  erase(sd, params, concepts, key, **hparams) -> Edit | Params

that returns what changed. To add a method, add a module.
"""

import difflib
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

from unlearning_jax.concepts import check_choice

_ARGUMENTS = ("sd", "params", "concepts", "key")


def methods() -> tuple[str, ...]:
  """The names of the erasure methods."""
  names = (module.name for module in pkgutil.iter_modules(__path__))
  return tuple(sorted(n for n in names if not n.startswith("_")))


def hyperparameters(method: str) -> tuple[str, ...]:
  """The names of a method's hyperparameters.

  Raises:
    ValueError: unknown method; names the nearest.
  """
  check_choice("method", method, methods())
  module = importlib.import_module(f"{__name__}.{method}")
  names = inspect.signature(module.erase).parameters
  return tuple(name for name in names if name not in _ARGUMENTS)


def bind(method: str, hparams: Mapping[str, Any]) -> Callable[..., Any]:
  """The method's `erase` with its hyperparameters, checked before any work.

  Args:
    method: a name from `methods()`.
    hparams: keyword arguments of that module's `erase`.

  Returns:
    A function of (sd, params, concepts, key).

  Raises:
    ValueError: unknown method; names the nearest.
    TypeError: unknown hyperparameter; names the accepted ones.
  """
  accepted = hyperparameters(method)
  module = importlib.import_module(f"{__name__}.{method}")
  for name in hparams:
    if name not in accepted:
      near = difflib.get_close_matches(name, accepted, n=1, cutoff=0.4)
      hint = f"; did you mean {near[0]}?" if near else ""
      raise TypeError(
        f"{method} has no hyperparameter {name!r}; accepted: "
        f"{', '.join(accepted)}{hint}"
      )
  return functools.partial(module.erase, **hparams)
