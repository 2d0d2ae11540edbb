"""What verbs were given, refused by name before anything is computed."""

import os
from typing import Any

from unlearning_jax.model import Model


def model(what: str, value: Any) -> Model:
  """A model as it was given.

  Raises:
    ValueError: it is something else; says how to get one.
  """
  if isinstance(value, Model):
    return value
  named = isinstance(value, str | os.PathLike)
  hint = f"ul.load({os.fspath(value)!r})" if named else "ul.load or ul.erase"
  raise ValueError(f"{what}={value!r} is not a model; take one from {hint}")


def models(what: str, value: Any) -> list[Model]:
  """One model or several, as a list.

  Raises:
    ValueError: none, or something else.
  """
  if not isinstance(value, list | tuple):
    return [model(what, value)]
  if not value:
    raise ValueError(f"{what}: no models")
  return [model(what, one) for one in value]
