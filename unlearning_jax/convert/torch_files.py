"""Writes `torch.save` files without torch, for tools that read no other format.

The file is what `torch.load(path, weights_only=True)` reads: a zip archive with
one raw file a tensor, and a pickle that rebuilds a dict of tensors from them.
The pickle is written opcode by opcode, because pickling torch's functions would
import torch.
"""

import pathlib
import struct
import sys
import zipfile
from collections.abc import Iterator, Mapping

import numpy as np

from unlearning_jax.convert.output import check_range, write_safetensors

_STORAGES = {
  "float32": "FloatStorage",
  "float16": "HalfStorage",
  "bfloat16": "BFloat16Storage",
}
_REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
_NO_HOOKS = b"ccollections\nOrderedDict\n)R"


def write_weights(
  path: pathlib.Path,
  ending: str,
  state: Mapping[str, np.ndarray],
  dtype: str,
  metadata: Mapping[str, str],
) -> None:
  """Writes tensors in the format of an ending.

  Args:
    ending: `.safetensors`; `.pt`, a state dict; or `.ckpt`, a dict that holds
      the state dict as `state_dict`, as code in the original layout reads it.
    metadata: the header of a safetensors file; the two others have none.

  Raises:
    ValueError: as `check_range`.
  """
  if ending == ".safetensors":
    write_safetensors(path, state, dtype, metadata)
  else:
    inside = "state_dict" if ending == ".ckpt" else None
    write_torch(path, state, dtype, inside)


def write_torch(
  path: pathlib.Path,
  state: Mapping[str, np.ndarray],
  dtype: str,
  inside: str | None = None,
) -> None:
  """Writes floating point tensors as a state dict in one torch file.

  Args:
    inside: the entry of a dict that holds the state dict; None for none.

  Raises:
    ValueError: as `check_range`.
  """
  check_range(state, dtype)
  with zipfile.ZipFile(path, "w") as archive:
    pickled = b"".join(_pickle(state, dtype, inside))
    archive.writestr("archive/data.pkl", pickled)
    archive.writestr("archive/byteorder", "little")
    for number, value in enumerate(state.values()):
      raw = np.asarray(value, np.dtype(dtype), order="C")
      if sys.byteorder == "big":
        raw = raw.byteswap()
      archive.writestr(f"archive/data/{number}", raw.tobytes())
    archive.writestr("archive/version", "3\n")


def _pickle(
  state: Mapping[str, np.ndarray], dtype: str, inside: str | None
) -> Iterator[bytes]:
  """The opcodes of {name: _rebuild_tensor_v2(storage, 0, shape, stride)}."""
  storage = f"ctorch\n{_STORAGES[dtype]}\n".encode()
  yield b"\x80\x02" + (b"}" + _text(inside) if inside else b"") + b"}("
  for number, (name, value) in enumerate(state.items()):
    strides = np.cumprod((1, *value.shape[:0:-1]))[::-1] if value.ndim else ()
    yield _text(name) + _REBUILD + b"(("
    # The persistent id of the tensor's storage.
    yield _text("storage") + storage + _text(str(number)) + _text("cpu")
    yield _integer(value.size) + b"tQ"
    yield _integer(0) + _integers(value.shape) + _integers(strides)
    # requires_grad is False.
    yield b"\x89" + _NO_HOOKS + b"tR"
  yield b"us." if inside else b"u."


def _text(value: str) -> bytes:
  raw = value.encode()
  return b"X" + struct.pack("<I", len(raw)) + raw


def _integer(value: int) -> bytes:
  return b"\x8a\x08" + struct.pack("<q", value)


def _integers(values) -> bytes:
  return b"(" + b"".join(_integer(int(v)) for v in values) + b"t"
