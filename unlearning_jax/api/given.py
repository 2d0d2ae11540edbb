"""Checks of what verbs are given, before anything is computed."""

import os
from typing import Any

import jax.numpy as jnp

from unlearning_jax.model import Model


def model(what: str, value: object) -> Model:
  """Returns the model that was given.

  Raises:
    ValueError: the value is no model; the message says how to get one.
  """
  if isinstance(value, Model):
    return value
  named = isinstance(value, str | os.PathLike)
  hint = f"ul.load({os.fspath(value)!r})" if named else "ul.load or ul.erase"
  raise ValueError(f"{what}={value!r} is not a model; take one from {hint}")


def computing(model: Model) -> dict[str, Any]:
  """How a model was loaded to compute, as settings have it."""
  config = model.sd.unet.config
  found = {"kernels": config.kernels}
  # A record of an earlier version names no usual ones.
  if (dtype := jnp.dtype(config.dtype).name) != "float32":
    found["dtype"] = dtype
  if config.attention != "auto":
    found["attention"] = config.attention
  return found


def models(what: str, value: object) -> list[Model]:
  """Returns one model or several as a list.

  Raises:
    ValueError: the list is empty, or holds something else.
  """
  if not isinstance(value, list | tuple):
    return [model(what, value)]
  if not value:
    raise ValueError(f"{what}: no models")
  return [model(what, one) for one in value]
