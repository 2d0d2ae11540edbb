"""Reads `torch.save` files without torch and without executing anything.

A file has the zip format of torch or the older one; `unpickler` reads the
pickle in it. Of what a training loop saved, the weights are kept.
"""

import math
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import IO, Any

import numpy as np
from absl import logging

from unlearning_jax.convert.safetensors_files import Header
from unlearning_jax.convert.unpickler import (
  Inert,
  Storage,
  Tensor,
  describe,
  load,
)

# Entries of a training checkpoint that hold the weights.
_CONTAINERS = ("state_dict", "model_state_dict", "module", "model")
# Entries beside the weights that training goes on with.
_TRAINING = re.compile(
  r"(opt(im(izer)?)?|(lr_)?sched(uler)?|(grad_)?scaler)(_?states?|_state_dict|s)?"
  r"\d*"
)
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
# The C unpickler and zipfile raise these on corrupt or hostile input.
_CORRUPT = (
  pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError,
  AttributeError, OverflowError, MemoryError, RuntimeError, OSError,
  struct.error, zipfile.BadZipFile,
)  # fmt: skip
# Entries of zip archives that are no state dict -> what they are.
_OTHER_ZIPS = {
  r"(^|/)constants\.pkl$": (
    "a TorchScript program; save its weights: "
    "torch.save(torch.jit.load(file).state_dict(), new_file)"
  ),
  r"\.npy$": "an archive of numpy (.npz); save its arrays as safetensors",
}
_MAX_DEPTH = 8
# A model has some thousands of tensors, with names of some hundred letters.
_MAX_ENTRIES = 1_000_000
_MAX_LETTERS = 1 << 26


def read_torch(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Reads the tensors of a file of `torch.save`, whatever its ending.

  The file has the zip format of `torch.save` or the older one. Names of nested
  dictionaries are joined by dots. Of a training checkpoint only the entry
  `state_dict`, `model_state_dict`, `module` or `model` is read. The state of an
  optimizer, numbers and strings are left out.

  Returns:
    Read-only arrays of the stored dtypes, bfloat16 as `ml_dtypes.bfloat16`.

  Raises:
    ValueError: the file is corrupt, or asks for anything but tensors.
  """
  return _open(path, _collect)


def read_headers(path: str | os.PathLike) -> dict[str, Header]:
  """Shapes, dtypes and places of what `read_torch` reads, without a number."""

  def headers(
    tree: object, _: object, place: Callable[[Storage], int]
  ) -> dict[str, Header]:
    found = {}
    for name, tensor in _tensors(tree).items():
      size = tensor.dtype.itemsize
      stored = tensor.storage.size * tensor.storage.dtype.itemsize
      _check_reach(name, tensor, stored // size)
      start = place(tensor.storage) + tensor.offset * size
      found[name] = Header(tensor.shape, tensor.dtype, start, tensor.strides)
    return found

  return _open(path, headers)


def read_beside(path: str | os.PathLike) -> list[str]:
  """Names of what a training loop saved beside the weights."""

  def beside(tree: object, *_: object) -> list[str]:
    if not isinstance(tree, dict):
      return []
    inside = [key for key in _CONTAINERS if isinstance(tree.get(key), dict)]
    return [
      name
      for name in tree
      if isinstance(name, str)
      and name not in inside[:1]
      and (inside or _TRAINING.fullmatch(name))
    ]

  return _open(path, beside)


def _open(path: str | os.PathLike, use: Callable) -> Any:
  """What `use` makes of the pickled tree.

  It also gets a function that reads a storage's bytes, and one that gives the
  place of their first in the file.
  """
  try:
    if zipfile.is_zipfile(path):
      with zipfile.ZipFile(path) as archive:
        return _read_zip(archive, path, use)
    with open(path, "rb") as file:
      return _read_legacy(file, use)
  except _CORRUPT as error:
    raise ValueError(
      f"{os.fspath(path)}: not a readable torch weights file: {error}"
    ) from error


def _read_zip(
  archive: zipfile.ZipFile, path: str | os.PathLike, use: Callable
) -> Any:
  entries: dict[str, zipfile.ZipInfo] = {}
  for end, kind in _OTHER_ZIPS.items():
    if any(re.search(end, name) for name in archive.namelist()):
      raise ValueError(f"it is {kind}")
  for info in archive.infolist():
    name = info.filename
    if name.startswith("/") or "\\" in name or ".." in name.split("/"):
      raise ValueError(f"entry {name!r} points outside the archive")
    if name in entries:
      raise ValueError(f"two entries are called {name!r}")
    if info.compress_type != zipfile.ZIP_STORED:
      raise ValueError(f"entry {name!r} is compressed; torch never does that")
    entries[name] = info
  # Entries that overlap would be read several times.
  whole = sum(info.file_size for info in archive.infolist())
  if whole > os.path.getsize(path):
    raise ValueError("its entries are larger than the file")
  pickles = [n for n in entries if re.fullmatch(r"([^/]+/)?data\.pkl", n)]
  if len(pickles) != 1:
    raise ValueError(f"{len(pickles)} entries called data.pkl, expected 1")
  root = pickles[0].removesuffix("data.pkl")
  order = entries.get(root + "byteorder")
  if order and archive.read(order) != b"little":
    raise ValueError("written on a big-endian machine")

  def entry(storage: Storage) -> zipfile.ZipInfo:
    name = f"{root}data/{storage.key}"
    if name not in entries:
      raise ValueError(f"entry {name!r} is missing")
    return entries[name]

  with archive.open(pickles[0]) as file, open(path, "rb") as raw:

    def place(storage: Storage) -> int:
      info = entry(storage)
      _check_size(storage, info.file_size)
      raw.seek(info.header_offset)
      lengths = struct.unpack("<26x2H", raw.read(30))
      return info.header_offset + 30 + sum(lengths)

    return use(load(file)[0], lambda one: archive.read(entry(one)), place)


def _read_legacy(file: IO[bytes], use: Callable) -> Any:
  """The format before torch 1.6: five pickles, then the raw storages."""
  if load(file)[0] != _LEGACY_MAGIC:
    raise ValueError("no torch magic number")
  if load(file)[0] != _LEGACY_PROTOCOL:
    raise ValueError("unknown protocol version")
  system = load(file)[0]
  if not isinstance(system, dict) or not system.get("little_endian", True):
    raise ValueError("written on a big-endian machine")
  tree, sizes = load(file)
  keys, _ = load(file)
  offsets: dict[str, int] = {}
  end = os.fstat(file.fileno()).st_size
  for key in keys:
    if not isinstance(key, str):
      raise ValueError(f"a storage is called by {describe(key)}")
    count = struct.unpack("<q", file.read(8))[0]
    if key not in sizes or key in offsets or count != sizes[key].size:
      raise ValueError(f"storage {key!r} is not the one that is referred to")
    offsets[key] = file.tell()
    after = offsets[key] + count * sizes[key].dtype.itemsize
    # Nothing is allocated for what the file does not hold.
    if after > end:
      raise ValueError(f"storage {key!r} ends after the file")
    file.seek(after)

  def fetch(storage: Storage) -> bytes:
    file.seek(offsets[storage.key])
    return file.read(storage.size * storage.dtype.itemsize)

  return use(tree, fetch, lambda storage: offsets[storage.key])


def _collect(
  tree: object, fetch: Callable[[Storage], bytes], _: object
) -> dict[str, np.ndarray]:
  """The tensors in what the pickle built; reads only their bytes."""
  found = _tensors(tree)
  cache: dict[Storage, np.ndarray] = {}
  arrays, copied = {}, 0
  for name, value in found.items():
    if value.storage not in cache:
      cache[value.storage] = _load_storage(value.storage, fetch)
    whole = cache[value.storage].view(value.dtype)
    arrays[name] = _view(name, value, whole)
    if not np.shares_memory(arrays[name], whole):
      copied += arrays[name].nbytes
    # Many transposed views of one storage would fill the memory.
    if copied > 2 * sum(held.nbytes for held in cache.values()):
      raise ValueError(f"tensor {name!r} and others are views of one storage")
  return arrays


def _tensors(tree: Any) -> dict[str, Tensor]:
  """The weights in what the pickle built, by their joined names."""
  if not isinstance(tree, dict):
    raise ValueError(
      f"it holds {describe(tree)}, not a state dict, which names its tensors"
    )
  if "layer_structure" in tree:
    raise ValueError(
      "it is a hypernetwork, whose layers stand beside the attention and are "
      "not linear: not supported; give the UNet"
    )
  if {"state", "param_groups"} <= set(tree):
    raise ValueError(
      "it is the state of an optimizer, not weights; the weights are a file "
      "beside it"
    )
  for key in _CONTAINERS:
    if isinstance(tree.get(key), dict):
      beside = [k for k in tree if isinstance(k, str) and k != key]
      if beside:
        logging.info("of %s only %s is read", [key, *beside], key)
      tree = tree[key]
  tree = {
    key: value
    for key, value in tree.items()
    if not (isinstance(key, str) and _TRAINING.fullmatch(key))
  }
  # Textual inversion saves a module beside the tokens of its words. It is not
  # rebuilt; the tokens tell what the file is.
  if "string_to_token" in tree and isinstance(
    tree.get("string_to_param"), Inert
  ):
    del tree["string_to_param"]
  tensors, letters = {}, 0
  for count, (name, value) in enumerate(_entries(tree, (), 0)):
    letters += len(name)
    # One dictionary can stand under many names of many others.
    if count == _MAX_ENTRIES or letters > _MAX_LETTERS:
      raise ValueError(
        f"it holds more than {_MAX_ENTRIES} entries, or {_MAX_LETTERS} letters "
        "in their names"
      )
    if isinstance(value, Tensor):
      if name in tensors:
        raise ValueError(f"two tensors are called {name!r}")
      tensors[name] = value
    elif not isinstance(value, dict | str | bytes | int | float | None):
      raise ValueError(f"{name!r} is {describe(value)}, not a tensor")
  if not tensors:
    raise ValueError("it holds no tensors")
  return tensors


def _entries(
  tree: dict, prefix: tuple[str, ...], depth: int
) -> Iterator[tuple[str, Any]]:
  """What a dictionary and those in it hold, by joined names; they too."""
  if depth > _MAX_DEPTH:
    raise ValueError("dictionaries nested too deeply")
  for key, value in tree.items():
    if not isinstance(key, str):
      where = ".".join(prefix) or "the top"
      raise ValueError(
        f"key {describe(key)} of {where} is not a name; save a state dict "
        "without it"
      )
    yield ".".join((*prefix, key)), value
    if isinstance(value, dict):
      yield from _entries(value, (*prefix, key), depth + 1)


def _load_storage(
  storage: Storage, fetch: Callable[[Storage], bytes]
) -> np.ndarray:
  raw = fetch(storage)
  _check_size(storage, len(raw))
  return np.frombuffer(raw, storage.dtype)


def _check_size(storage: Storage, size: int):
  if size != storage.size * storage.dtype.itemsize:
    raise ValueError(
      f"storage {storage.key!r} holds {size} bytes, expected "
      f"{storage.size} x {storage.dtype}"
    )


def _check_reach(name: str, tensor: Tensor, size: int) -> int:
  """The count of a tensor's numbers, all within the `size` of its storage."""
  count = math.prod(tensor.shape)
  spans = zip(tensor.shape, tensor.strides, strict=True)
  last = tensor.offset + sum((n - 1) * stride for n, stride in spans)
  if count and (last >= size or count > size):
    raise ValueError(f"tensor {name!r} reaches outside its storage")
  return count


def _view(name: str, tensor: Tensor, storage: np.ndarray) -> np.ndarray:
  if not _check_reach(name, tensor, storage.size):
    return np.empty(tensor.shape, storage.dtype)
  strides = [stride * storage.itemsize for stride in tensor.strides]
  begin = tensor.offset * storage.itemsize
  # As bytes, because ml_dtypes' types have no buffer.
  raw = storage.view(np.uint8).data
  view = np.ndarray(tensor.shape, storage.dtype, raw, begin, strides)
  return np.asarray(view, order="C")
