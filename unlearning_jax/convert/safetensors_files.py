"""Reads `.safetensors` files: the header alone, or the tensors too.

The format's own library checks the file. Its numpy side has no float8, so the
bytes are read here and given their type.
"""

import io
import json
import math
import os
from typing import NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from unlearning_jax import durable

_DTYPES: dict[str, type] = {
  "F64": np.float64, "F32": np.float32, "F16": np.float16,
  "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn,
  "F8_E5M2": ml_dtypes.float8_e5m2, "I64": np.int64, "I32": np.int32,
  "I16": np.int16, "I8": np.int8, "U64": np.uint64, "U32": np.uint32,
  "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


class Header(NamedTuple):
  """What a file says of a tensor, without its numbers.

  Attributes:
    shape: the tensor's.
    dtype: the stored one.
    place: of its first byte in the file; -1 where the format has none.
    strides: in numbers; None where the tensor lies in order.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  place: int = -1
  strides: tuple[int, ...] | None = None


def read_header(
  path: str | os.PathLike[str],
) -> tuple[dict[str, Header], dict[str, str]]:
  """The tensors' headers, and the text metadata; reads no tensor.

  Raises:
    durable.DamagedError: the file is damaged or cannot be read.
    ValueError: a dtype is unknown.
  """
  try:
    # Checks sizes, overlaps and the end before anything is believed.
    with safe_open(path, framework="np") as file:
      names, metadata = list(file.keys()), dict(file.metadata() or {})
    with open(path, "rb") as raw:
      size = int.from_bytes(raw.read(8), "little")
      entries = json.loads(raw.read(size))
  except (SafetensorError, OSError, ValueError) as error:
    raise durable.DamagedError(
      f"{path}: not a readable safetensors file: {error}"
    ) from error
  headers = {}
  for name in names:
    entry = entries[name]
    if entry["dtype"] not in _DTYPES:
      raise ValueError(
        f"{path}: {name!r} has dtype {entry['dtype']}; allowed: "
        f"{', '.join(_DTYPES)}"
      )
    headers[name] = Header(
      tuple(entry["shape"]),
      np.dtype(_DTYPES[entry["dtype"]]),
      8 + size + entry["data_offsets"][0],
    )
  return headers, metadata


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """The tensors, in their stored dtypes.

  Raises:
    ValueError: as `read_header`.
  """
  headers, _ = read_header(path)
  with open(path, "rb") as file:
    return {name: load(file, header) for name, header in headers.items()}


def load(file: io.BufferedReader, header: Header) -> np.ndarray:
  """One tensor of an open file.

  Raises:
    ValueError: the file ends before it.
  """
  shape, strides = header.shape, header.strides
  count = math.prod(shape)
  if strides is not None and count:
    steps = zip(shape, strides, strict=True)
    count = 1 + sum((n - 1) * stride for n, stride in steps)
  raw = np.empty(count, header.dtype)
  file.seek(header.place)
  if file.readinto(raw.view(np.uint8).data) != raw.nbytes:
    raise ValueError(f"{file.name}: ends before its last tensor")
  if strides is None or not count:
    return raw.reshape(shape)
  # As bytes, because ml_dtypes' types have no buffer.
  view = np.ndarray(
    shape, raw.dtype, raw.view(np.uint8).data,
    strides=[stride * raw.itemsize for stride in strides],
  )  # fmt: skip
  return np.asarray(view, order="C")
