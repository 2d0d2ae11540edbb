"""Reads a model's own `config.json` and refuses every key it cannot follow."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

Config = TypeVar("Config")

# Libraries write these keys for bookkeeping; they change no tensor. `dtype` is
# the type in which the file stores the weights, not that of the computation.
_BOOKKEEPING = frozenset({
    "architectures", "dtype", "torch_dtype", "transformers_version",
    "model_type", "_name_or_path", "sample_size", "force_upcast",
})  # fmt: skip


def read_config(
  cls: type[Config],
  config: Mapping[str, Any],
  fixed: Mapping[str, Any],
  **overrides: Any,
) -> Config:
  """Builds the dataclass `cls` from a `config.json`.

  Args:
    cls: a frozen dataclass. Its fields are the supported keys; their defaults
      are those of the libraries.
    config: the contents of `config.json`; lists become tuples.
    fixed: the one supported value of a key, or a tuple of several. A key that
      is neither here nor in `cls` must be None or False.
    **overrides: fields that no file holds, such as the compute dtype.

  Raises:
    ValueError: a key has a value that is not supported.
  """
  names = {field.name for field in dataclasses.fields(cls)}  # type: ignore
  for key, value in config.items():
    if key in names or key in _BOOKKEEPING or key.startswith("_"):
      continue
    allowed = fixed.get(key, (None, False))
    allowed = allowed if isinstance(allowed, tuple) else (allowed,)
    if value not in allowed:
      raise ValueError(
        f"{cls.__name__}: {key}={value!r} is not supported; allowed: "
        + " or ".join(repr(a) for a in allowed)
      )
  values = {
    key: tuple(value) if isinstance(value, list) else value
    for key, value in config.items()
    if key in names - _BOOKKEEPING
  }
  hints = typing.get_type_hints(cls)
  for key, value in values.items():
    if not _is_of(hints[key], value):
      raise ValueError(
        f"{cls.__name__}: {key}={str(value)[:80]!r} is not supported; allowed: "
        f"{_said(hints[key])}"
      )
  return cls(**{**values, **overrides})


# More layers or channels than any network has would fill the memory.
_MOST = 1 << 20


def _is_of(hint: Any, value: Any) -> bool:
  """Whether a config's value has the type of its field, and a sound size."""
  if isinstance(hint, types.UnionType):
    return any(_is_of(one, value) for one in typing.get_args(hint))
  if typing.get_origin(hint) is tuple:
    inner = typing.get_args(hint)[0]
    several = isinstance(value, tuple) and 0 < len(value) <= 64
    return several and all(_is_of(inner, one) for one in value)
  if hint in (bool, str):
    return isinstance(value, hint)
  number = isinstance(value, int | float) and not isinstance(value, bool)
  if hint is int:
    return number and isinstance(value, int) and 0 <= value <= _MOST
  # A number of hundreds of digits makes `math.isfinite` raise.
  return number and abs(value) < 1e300


def _said(hint: Any) -> str:
  if isinstance(hint, types.UnionType):
    return " or ".join(map(_said, typing.get_args(hint)))
  if typing.get_origin(hint) is tuple:
    return f"a list, each {_said(typing.get_args(hint)[0])}"
  if hint is int:
    return f"a whole number up to {_MOST}"
  return {bool: "true or false", str: "a text"}.get(hint, "a finite number")


def check_parts_fit(text: Any, unet: Any, vae: Any, *, tokens: int):
  """Refuses the configs of networks that belong to different models.

  Args:
    tokens: size of the tokenizer's vocabulary.

  Raises:
    ValueError: widths, channels or vocabularies differ; names both values.
  """
  for one, value, other, wanted in (
    ("text encoder's width", text.hidden_size,
     "UNet's cross_attention_dim", unet.cross_attention_dim),
    ("VAE's latent_channels", vae.latent_channels,
     "UNet's in_channels", unet.in_channels),
    ("VAE's latent_channels", vae.latent_channels,
     "UNet's out_channels", unet.out_channels),
  ):  # fmt: skip
    if value != wanted:
      raise ValueError(
        f"model: the {one} is {value}, the {other} {wanted}: they belong to "
        "different models"
      )
  # JAX would silently read the last embedding for an id that has none.
  if tokens > text.vocab_size:
    raise ValueError(
      f"model: the tokenizer has {tokens} tokens, the text encoder "
      f"{text.vocab_size}: they belong to different models"
    )
