"""Reads the tensors of one weights file, whatever its format."""

import os
import pathlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
from flax import serialization

from unlearning_jax import durable
from unlearning_jax.convert import names, pickles, safetensors_files
from unlearning_jax.convert.lazy import Lazy
from unlearning_jax.convert.safetensors_files import Header

# How a file's tensors are read: `read_state_dict` or `read_lazily`.
Reader = Callable[[str | os.PathLike], names.State]
# Keys that the header of an edited model's file must have, and may have.
_EDIT = {"base", "method", "concepts"}
_OF_EDIT = _EDIT | {"diagnostics"}


def read_state_dict(path: str | os.PathLike) -> names.State:
  """Reads every tensor of a weights file and executes nothing in it.

  The first bytes decide the format; the ending decides nothing.

  Args:
    path: a safetensors file, a file of `torch.save`, a flax msgpack, or the
      `*.index*.json` of a file in shards.

  Returns:
    Arrays of the stored dtypes (bfloat16 and float8 as `ml_dtypes`) under the
    names in the file. Flax names and layouts become torch's.

  Raises:
    ValueError: the file is missing, corrupt, of another format, or holds
      anything but tensors; the message names it.
  """
  path = pathlib.Path(path)
  return _FORMATS[file_format(path)].read(path)


def read_headers(path: str | os.PathLike) -> dict[str, Header]:
  """Shapes and dtypes of a weights file's tensors; reads no number of them.

  A flax file has no header and is read whole. Errors as `read_state_dict`.
  """
  path = pathlib.Path(path)
  return _FORMATS[file_format(path)].headers(path)


def read_lazily(path: str | os.PathLike) -> names.State:
  """As `read_state_dict`, but each tensor is read when its numbers are needed.

  The tensors are `lazy.Lazy`, of which numpy makes arrays. A flax file is read
  whole.
  """
  path = pathlib.Path(path)
  return _FORMATS[file_format(path)].lazily(path)


def file_format(path: pathlib.Path) -> str:
  """What a file's first bytes say: `safetensors`, `torch`, `flax`, `shards`.

  Raises:
    ValueError: the file is missing, or of a kind that holds no weights for us.
  """
  durable.check_plain(path)
  with open(path, "rb") as file:
    head = file.read(512)
  for start, kind in _NO_WEIGHTS.items():
    if head.lstrip().lower().startswith(start):
      raise ValueError(f"{path}: {kind}")
  # The size of a safetensors' header, and the brace that begins it.
  if head[8:9] == b"{" and not any(head[5:8]):
    return "safetensors"
  if head[:4] == b"PK\x03\x04" or (head[:1] == b"\x80" and head[1:2] < b"\x06"):
    return "torch"
  if head[:1] in (b"{", b"["):
    return "shards"
  if head and (head[0] in (0xDE, 0xDF) or 0x81 <= head[0] <= 0x8F):
    return "flax"
  # Damaged: the reader of its ending says how.
  found = _ENDINGS.get(path.suffix)
  if found is None:
    raise ValueError(
      f"{path}: its first bytes, {head[:8]!r}, begin no weights file; allowed: "
      "safetensors, a file of torch.save, flax msgpack, an index of shards"
    )
  return found


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
  """The text metadata of a safetensors file; {} for any other file."""
  path = pathlib.Path(path)
  if not path.is_file() or file_format(path) != "safetensors":
    return {}
  return safetensors_files.read_header(path)[1]


def read_edit(path: str | os.PathLike) -> dict[str, str]:
  """What the header of an edited model's file says of the edit; {} for others.

  The keys are `base`, `method`, `concepts` and perhaps `diagnostics`.
  """
  header = read_metadata(path)
  if not _EDIT <= set(header):
    return {}
  return {key: header[key] for key in sorted(_OF_EDIT & set(header))}


def as_float32(state: Mapping[str, np.ndarray], source: str) -> names.State:
  """Casts weights to float32; `source` names them in errors.

  Raises:
    ValueError: a tensor is not floating point, or holds NaN or infinity. A
      tensor that is read lazily raises the latter when it is read.
  """

  def finite(name: str, value: np.ndarray) -> np.ndarray:
    if not np.isfinite(value).all():
      raise ValueError(f"{source}: {name!r} holds NaN or infinity")
    return value

  out = {}
  for name, value in state.items():
    if not names.is_floating(value):
      raise ValueError(
        f"{source}: {name!r} has dtype {value.dtype}; weights are floating "
        "point (quantised models are not supported)"
      )
    cast, check = value.astype(np.float32, copy=False), partial(finite, name)
    out[name] = cast.then(check) if isinstance(cast, Lazy) else check(cast)
  return out


def _read_msgpack(path: pathlib.Path) -> names.State:
  try:
    tree = serialization.msgpack_restore(path.read_bytes())
    if not isinstance(tree, dict):
      raise ValueError(f"it holds a {type(tree).__name__}, not parameters")
    tree = tree["params"] if set(tree) == {"params"} else tree
    return names.torch_views(tree)
  # msgpack raises ValueErrors; the others come from rebuilding arrays out of
  # corrupt bytes.
  except (ValueError, TypeError, KeyError, AssertionError) as error:
    raise ValueError(f"{path}: not a readable flax file: {error}") from error


def _read_shards(path: pathlib.Path) -> names.State:
  return _of_shards(path, read_state_dict)


def _lazy_shards(path: pathlib.Path) -> names.State:
  return _of_shards(path, read_lazily)


def _shard_headers(path: pathlib.Path) -> dict[str, Header]:
  return _of_shards(path, read_headers)


def _of_shards(path: pathlib.Path, read: Callable) -> dict[str, Any]:
  """What `read` finds in the shards that an index names."""
  index = durable.read_json(path).get("weight_map")
  if not isinstance(index, dict) or not index:
    raise ValueError(f"{path}: is no index of shards: it has no weight_map")
  state: dict[str, Any] = {}
  for shard in sorted({str(name) for name in index.values()}):
    plain = pathlib.PurePath(shard).name == shard and "\\" not in shard
    # No file has a longer name; an error with one would fill pages.
    if not plain or shard.endswith(".json") or len(shard) > 255:
      raise ValueError(
        f"{path}: {shard[:80]!r} is not a weights file beside it"
      )
    tensors = read(path.parent / shard)
    expected = {key for key, name in index.items() if name == shard}
    names.report_mismatch(
      str(path.parent / shard),
      missing=sorted(expected - set(tensors)),
      not_in_the_index=sorted(set(tensors) - expected),
    )
    state.update(tensors)
  return state


def _shapes(state: names.State) -> dict[str, Header]:
  return {key: Header(value.shape, value.dtype) for key, value in state.items()}


def _by_place(path: pathlib.Path) -> names.State:
  """Tensors of a file whose headers say where each lies."""

  def make(header: Header) -> np.ndarray:
    with open(path, "rb") as file:
      return safetensors_files.load(file, header)

  headers = _FORMATS[file_format(path)].headers(path)
  lazily = {
    name: Lazy(partial(make, header), header.shape, header.dtype)
    for name, header in headers.items()
  }
  return cast(names.State, lazily)


class _Format(NamedTuple):
  read: Callable[[pathlib.Path], names.State]
  headers: Callable[[pathlib.Path], dict[str, Header]]
  lazily: Callable[[pathlib.Path], names.State]


_FORMATS = {
  "safetensors": _Format(
    safetensors_files.read,
    lambda path: safetensors_files.read_header(path)[0],
    _by_place,
  ),
  "torch": _Format(pickles.read_torch, pickles.read_headers, _by_place),
  "flax": _Format(
    _read_msgpack, lambda path: _shapes(_read_msgpack(path)), _read_msgpack
  ),
  "shards": _Format(_read_shards, _shard_headers, _lazy_shards),
}
_ENDINGS = {
  ".safetensors": "safetensors", ".bin": "torch", ".pt": "torch",
  ".pth": "torch", ".ckpt": "torch", ".msgpack": "flax", ".json": "shards",
}  # fmt: skip
# How files begin that hold no weights for us, in lower case.
_NO_WEIGHTS = {
  b"version https://git-lfs": "is a git-lfs pointer, not the weights; run "
  "`git lfs pull`",
  b"<!doctype": "is a web page, not the weights; download the file again",
  b"<html": "is a web page, not the weights; download the file again",
  b"<?xml": "is an XML file, as OpenVINO describes a model; not supported: "
  "give the safetensors that it was made from",
  b"gguf": "is a GGUF file, whose weights are quantized; not supported: give "
  "the safetensors that it was made from",
  b"\x89hdf": "is an HDF5 file (Keras); not supported: give safetensors",
  b"\x93numpy": "is a numpy array, not a model; save it under its tensor's "
  "name in a safetensors file",
  b"\x1f\x8b": "is a gzip archive; unpack it first",
  b"7z\xbc\xaf": "is a 7-Zip archive; unpack it first",
  b"rar!": "is a RAR archive; unpack it first",
  # Its version, and the name of the tool that wrote it.
  **{
    bytes((0x08, version, 0x12)): "is an ONNX program; not supported: give the "
    "safetensors that it was made from"
    for version in range(3, 16)
  },
}
