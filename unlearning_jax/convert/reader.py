"""Reads the tensors of one weights file, whatever its format."""

import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import serialization
from safetensors import SafetensorError, safe_open

from unlearning_jax.convert import names, pickles

_LFS_POINTER = b"version https://git-lfs"
# Keys that the header of an edited model's file must have, and may have.
_EDIT = {"base", "method", "concepts"}
_OF_EDIT = _EDIT | {"diagnostics"}


def read_state_dict(path: str | os.PathLike) -> names.State:
  """Reads every tensor of a weights file and executes nothing in it.

  Args:
    path: a `.safetensors` file; a torch `.bin`, `.pt`, `.pth` or `.ckpt`; a
      flax `.msgpack`; or the `*.index*.json` of a file in shards.

  Returns:
    Arrays of the stored dtypes (bfloat16 as `ml_dtypes.bfloat16`) under the
    names in the file. Flax names and layouts become torch's.

  Raises:
    ValueError: the file is missing, corrupt, of another format, or holds
      anything but tensors; the message names it.
  """
  path = pathlib.Path(path)
  reader = _READERS.get(path.suffix)
  if reader is None:
    raise ValueError(
      f"{path}: cannot tell the format from {path.suffix!r}; allowed: "
      f"{', '.join(_READERS)}"
    )
  if not path.is_file():
    raise ValueError(f"{path}: no such file")
  with open(path, "rb") as file:
    if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
      raise ValueError(
        f"{path}: is a git-lfs pointer, not the weights; run `git lfs pull`"
      )
  return reader(path)


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
  """The text metadata of a `.safetensors` file; {} for any other file."""
  return _read_header(path, lambda file: dict(file.metadata() or {}), {})


def read_names(path: str | os.PathLike) -> list[str]:
  """The tensors' names in a `.safetensors` file; [] for any other file."""
  return _read_header(path, lambda file: list(file.keys()), [])


def read_edit(path: str | os.PathLike) -> dict[str, str]:
  """What the header of an edited model's file says of the edit; {} for others.

  The keys are `base`, `method`, `concepts` and perhaps `diagnostics`.
  """
  header = read_metadata(path)
  if not _EDIT <= set(header):
    return {}
  return {key: header[key] for key in sorted(_OF_EDIT & set(header))}


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Reads a JSON object.

  Raises:
    ValueError: the file is missing, not JSON, or not an object.
  """
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError as error:
    raise ValueError(f"{path}: no such file") from error
  except (OSError, ValueError) as error:
    raise ValueError(f"{path}: not readable as JSON: {error}") from error
  if not isinstance(value, dict):
    raise ValueError(f"{path}: holds a {type(value).__name__}, not an object")
  return value


def as_float32(state: Mapping[str, np.ndarray], source: str) -> names.State:
  """Casts weights to float32; `source` names them in errors.

  Raises:
    ValueError: a tensor is not floating point, or holds NaN or infinity.
  """
  out = {}
  for name, value in state.items():
    if not names.is_floating(value):
      raise ValueError(
        f"{source}: {name!r} has dtype {value.dtype}; weights are floating "
        "point (quantised models are not supported)"
      )
    out[name] = value.astype(np.float32, copy=False)
    if not np.isfinite(out[name]).all():
      raise ValueError(f"{source}: {name!r} holds NaN or infinity")
  return out


def _read_header(path: str | os.PathLike, read: Callable, absent: Any) -> Any:
  if pathlib.Path(path).suffix != ".safetensors":
    return absent
  try:
    with safe_open(path, framework="np") as file:
      return read(file)
  except (SafetensorError, OSError) as error:
    raise ValueError(f"{path}: not a readable safetensors file: {error}") from (
      error
    )


def _read_safetensors(path: pathlib.Path) -> names.State:
  try:
    with safe_open(path, framework="np") as file:
      return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
  # A float8 tensor raises AttributeError, because numpy has no such dtype.
  except (SafetensorError, OSError, AttributeError) as error:
    raise ValueError(f"{path}: not a readable safetensors file: {error}") from (
      error
    )


def _read_msgpack(path: pathlib.Path) -> names.State:
  try:
    tree = serialization.msgpack_restore(path.read_bytes())
    if not isinstance(tree, dict):
      raise ValueError(f"it holds a {type(tree).__name__}, not parameters")
    return names.to_torch(tree["params"] if set(tree) == {"params"} else tree)
  # msgpack raises ValueErrors; the others come from rebuilding arrays out of
  # corrupt bytes.
  except (ValueError, TypeError, KeyError, AssertionError) as error:
    raise ValueError(f"{path}: not a readable flax file: {error}") from error


def _read_shards(path: pathlib.Path) -> names.State:
  index = read_json(path).get("weight_map")
  if not isinstance(index, dict) or not index:
    raise ValueError(f"{path}: no weight_map")
  state: names.State = {}
  for shard in sorted({str(name) for name in index.values()}):
    plain = pathlib.PurePath(shard).name == shard and "\\" not in shard
    if not plain or shard.endswith(".json"):
      raise ValueError(f"{path}: {shard!r} is not a weights file beside it")
    tensors = read_state_dict(path.parent / shard)
    expected = {key for key, name in index.items() if name == shard}
    names.report_mismatch(
      str(path.parent / shard),
      missing=sorted(expected - set(tensors)),
      not_in_the_index=sorted(set(tensors) - expected),
    )
    state.update(tensors)
  return state


_READERS: dict[str, Callable[[pathlib.Path], names.State]] = {
  ".safetensors": _read_safetensors,
  ".bin": pickles.read_torch,
  ".pt": pickles.read_torch,
  ".pth": pickles.read_torch,
  ".ckpt": pickles.read_torch,
  ".msgpack": _read_msgpack,
  ".json": _read_shards,
}
