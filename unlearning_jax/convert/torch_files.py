"""Writes `torch.save` files without torch, for tools that read no other format.

The file is what `torch.load(path, weights_only=True)` reads: a zip archive with
one raw file a tensor, and a pickle that rebuilds a dict of tensors from them.
The pickle is written opcode by opcode, because pickling torch's functions would
import torch.
"""

import pathlib
import struct
import zipfile
from collections.abc import Iterator, Mapping

import numpy as np

from unlearning_jax.convert.output import check_range

_STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage"}
_REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
_NO_HOOKS = b"ccollections\nOrderedDict\n)R"


def write_torch(
  path: pathlib.Path, state: Mapping[str, np.ndarray], dtype: str
) -> None:
  """Writes floating point tensors as a state dict in one `.pt` file.

  Raises:
    ValueError: as `check_range`.
  """
  check_range(state, dtype)
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("archive/data.pkl", b"".join(_pickle(state, dtype)))
    archive.writestr("archive/byteorder", "little")
    little = np.dtype(dtype).newbyteorder("<")
    for number, value in enumerate(state.values()):
      raw = np.asarray(value, little, order="C").tobytes()
      archive.writestr(f"archive/data/{number}", raw)
    archive.writestr("archive/version", "3\n")


def _pickle(state: Mapping[str, np.ndarray], dtype: str) -> Iterator[bytes]:
  """The opcodes of {name: _rebuild_tensor_v2(storage, 0, shape, stride)}."""
  storage = f"ctorch\n{_STORAGES[dtype]}\n".encode()
  yield b"\x80\x02}("
  for number, (name, value) in enumerate(state.items()):
    strides = np.cumprod((1, *value.shape[:0:-1]))[::-1] if value.ndim else ()
    yield _text(name) + _REBUILD + b"(("
    # The persistent id of the tensor's storage.
    yield _text("storage") + storage + _text(str(number)) + _text("cpu")
    yield _integer(value.size) + b"tQ"
    yield _integer(0) + _integers(value.shape) + _integers(strides)
    # requires_grad is False.
    yield b"\x89" + _NO_HOOKS + b"tR"
  yield b"u."


def _text(value: str) -> bytes:
  raw = value.encode()
  return b"X" + struct.pack("<I", len(raw)) + raw


def _integer(value: int) -> bytes:
  return b"\x8a\x08" + struct.pack("<q", value)


def _integers(values) -> bytes:
  return b"(" + b"".join(_integer(int(v)) for v in values) + b"t"
