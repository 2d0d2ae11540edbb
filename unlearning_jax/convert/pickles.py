"""Reads `torch.save` files without torch and without executing anything.

A pickle is a program. This unpickler knows three harmless words of it: rebuild
a tensor, name a storage, make an OrderedDict. It refuses every other global by
name, with one exception: training frameworks store callbacks, hyperparameters
and optimizer state beside the weights. Their globals (`_INERT`) become
placeholders that import nothing and ignore what the pickle does to them. A
placeholder among the weights themselves is refused.
"""

import os
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

_INERT = frozenset({
  "_codecs", "argparse", "collections", "lightning", "lightning_fabric",
  "numpy", "omegaconf", "pathlib", "pytorch_lightning", "torch", "typing",
})  # fmt: skip
_INERT_BUILTINS = frozenset({
  "bool", "bytes", "complex", "dict", "float", "frozenset", "int", "list",
  "object", "set", "slice", "str", "tuple",
})  # fmt: skip
_STORAGES = {
  "FloatStorage": np.float32,
  "DoubleStorage": np.float64,
  "HalfStorage": np.float16,
  "BFloat16Storage": ml_dtypes.bfloat16,
  "LongStorage": np.int64,
  "IntStorage": np.int32,
  "ShortStorage": np.int16,
  "CharStorage": np.int8,
  "ByteStorage": np.uint8,
  "BoolStorage": np.bool_,
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
# The C unpickler and zipfile raise these on corrupt or hostile input.
_CORRUPT = (
  pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError,
  AttributeError, OverflowError, MemoryError, RuntimeError, OSError,
  struct.error, zipfile.BadZipFile,
)  # fmt: skip
_MAX_DEPTH = 8


# These are named tuples because a pickle can set attributes of any object that
# has a __dict__ or a __setstate__, as numpy arrays and dtypes have.
class _StorageType(NamedTuple):
  dtype: np.dtype


class _Storage(NamedTuple):
  dtype: np.dtype
  key: str
  size: int


class _Tensor(NamedTuple):
  storage: _Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


class _Inert:
  """Stands in for an object that is not rebuilt."""

  __slots__ = ()

  def __new__(cls, *_args: Any, **_kwargs: Any) -> "_Inert":
    return object.__new__(cls)

  def __init__(self, *_args: Any, **_kwargs: Any):
    pass

  def _swallow(self, *_args: Any) -> None:
    pass

  __setstate__ = __setitem__ = append = extend = add = _swallow


class _RebuildTensor:
  __slots__ = ()

  def __call__(
    self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any
  ) -> _Tensor:
    """Records a strided view without its hooks, metadata and gradients."""
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or len(shape) != len(strides):
      raise pickle.UnpicklingError("malformed tensor")
    if not all(type(n) is int and n >= 0 for n in numbers):
      raise pickle.UnpicklingError(f"malformed tensor {shape} {strides}")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


class _RebuildParameter:
  __slots__ = ()

  def __call__(self, data: Any, *_: Any) -> _Tensor:
    """A parameter is its tensor."""
    if not isinstance(data, _Tensor):
      raise pickle.UnpicklingError("malformed parameter")
    return data


_GLOBALS = {
  ("collections", "OrderedDict"): OrderedDict,
  ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
  ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
  **{
    ("torch", name): _StorageType(np.dtype(dtype))
    for name, dtype in _STORAGES.items()
  },
}


class _Unpickler(pickle.Unpickler):
  """An unpickler that looks nothing up and imports nothing."""

  def __init__(self, file: IO[bytes]):
    super().__init__(file)
    self.storages: dict[str, _Storage] = {}

  def find_class(self, module: str, name: str) -> Any:
    """Resolves a global from the table, else to a placeholder, else refuses."""
    if (module, name) in _GLOBALS:
      return _GLOBALS[module, name]
    builtin = module == "builtins" and name in _INERT_BUILTINS
    if builtin or module.split(".")[0] in _INERT:
      return type(f"{module}.{name}", (_Inert,), {"__slots__": ()})
    raise pickle.UnpicklingError(
      f"it asks for {module}.{name}, which no weights file needs; refused, "
      "and nothing was executed"
    )

  def persistent_load(self, pid: Any) -> _Storage:
    """Reads a reference to a storage elsewhere in the file."""
    kind, storage_type, key, _, size = pid[:5]
    if kind != "storage" or not isinstance(storage_type, _StorageType):
      raise pickle.UnpicklingError(f"unsupported reference {kind!r}")
    if len(pid) == 6 and pid[5] is not None:
      raise pickle.UnpicklingError("views of storages are not supported")
    if not re.fullmatch(r"\w+", key) or type(size) is not int or size < 0:
      raise pickle.UnpicklingError(f"malformed storage {key!r} of {size!r}")
    storage = _Storage(storage_type.dtype, key, size)
    if self.storages.setdefault(key, storage) != storage:
      raise pickle.UnpicklingError(f"storage {key!r} is described twice")
    return storage


def read_torch(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Reads the tensors of a `.pt`, `.pth`, `.bin` or `.ckpt` file.

  The file has the zip format of `torch.save` or the older one. Names of nested
  dictionaries are joined by dots. Of a training checkpoint only the entry
  `state_dict` or `model_state_dict` is read. Numbers and strings are left out.

  Returns:
    Read-only arrays of the stored dtypes, bfloat16 as `ml_dtypes.bfloat16`.

  Raises:
    ValueError: the file is corrupt, or asks for anything but tensors.
  """
  try:
    if zipfile.is_zipfile(path):
      with zipfile.ZipFile(path) as archive:
        return _read_zip(archive)
    with open(path, "rb") as file:
      return _read_legacy(file)
  except _CORRUPT as error:
    raise ValueError(
      f"{os.fspath(path)}: not a readable torch weights file: {error}"
    ) from error


def _read_zip(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
  entries: dict[str, zipfile.ZipInfo] = {}
  for info in archive.infolist():
    name = info.filename
    if name.startswith("/") or "\\" in name or ".." in name.split("/"):
      raise ValueError(f"entry {name!r} points outside the archive")
    if name in entries:
      raise ValueError(f"two entries are called {name!r}")
    if info.compress_type != zipfile.ZIP_STORED:
      raise ValueError(f"entry {name!r} is compressed; torch never does that")
    entries[name] = info
  pickles = [n for n in entries if re.fullmatch(r"([^/]+/)?data\.pkl", n)]
  if len(pickles) != 1:
    raise ValueError(f"{len(pickles)} entries called data.pkl, expected 1")
  root = pickles[0].removesuffix("data.pkl")
  order = entries.get(root + "byteorder")
  if order and archive.read(order) != b"little":
    raise ValueError("written on a big-endian machine")

  def fetch(storage: _Storage) -> bytes:
    name = f"{root}data/{storage.key}"
    if name not in entries:
      raise ValueError(f"entry {name!r} is missing")
    return archive.read(entries[name])

  with archive.open(pickles[0]) as file:
    tree = _Unpickler(file).load()
  return _collect(tree, fetch)


def _read_legacy(file: IO[bytes]) -> dict[str, np.ndarray]:
  """The format before torch 1.6: five pickles, then the raw storages."""
  if _Unpickler(file).load() != _LEGACY_MAGIC:
    raise ValueError("no torch magic number")
  if _Unpickler(file).load() != _LEGACY_PROTOCOL:
    raise ValueError("unknown protocol version")
  system = _Unpickler(file).load()
  if not isinstance(system, dict) or not system.get("little_endian", True):
    raise ValueError("written on a big-endian machine")
  main = _Unpickler(file)
  tree = main.load()
  keys = _Unpickler(file).load()
  sizes = main.storages
  offsets: dict[str, int] = {}
  for key in keys:
    count = struct.unpack("<q", file.read(8))[0]
    if key not in sizes or key in offsets or count != sizes[key].size:
      raise ValueError(f"storage {key!r} is not the one that is referred to")
    offsets[key] = file.tell()
    file.seek(count * sizes[key].dtype.itemsize, os.SEEK_CUR)

  def fetch(storage: _Storage) -> bytes:
    file.seek(offsets[storage.key])
    return file.read(storage.size * storage.dtype.itemsize)

  return _collect(tree, fetch)


def _collect(
  tree: Any, fetch: Callable[[_Storage], bytes]
) -> dict[str, np.ndarray]:
  """Finds the tensors in what the pickle built, and reads only their bytes."""
  if not isinstance(tree, dict):
    raise ValueError(f"it holds {_describe(tree)}, not a state dict")
  for key in ("state_dict", "model_state_dict"):
    if isinstance(tree.get(key), dict):
      tree = tree[key]
  cache: dict[_Storage, np.ndarray] = {}
  tensors = {}
  for name, value in _leaves(tree, (), 0):
    if isinstance(value, _Tensor):
      if name in tensors:
        raise ValueError(f"two tensors are called {name!r}")
      if value.storage not in cache:
        cache[value.storage] = _load_storage(value.storage, fetch)
      tensors[name] = _view(name, value, cache[value.storage])
    elif not isinstance(value, str | bytes | int | float | None):
      raise ValueError(f"{name!r} is {_describe(value)}, not a tensor")
  if not tensors:
    raise ValueError("it holds no tensors")
  return tensors


def _leaves(
  tree: dict, prefix: tuple[str, ...], depth: int
) -> Iterator[tuple[str, Any]]:
  if depth > _MAX_DEPTH:
    raise ValueError("dictionaries nested too deeply")
  for key, value in tree.items():
    if not isinstance(key, str):
      raise ValueError(f"key {_describe(key)} is not a name")
    if isinstance(value, dict):
      yield from _leaves(value, (*prefix, key), depth + 1)
    else:
      yield ".".join((*prefix, key)), value


def _load_storage(
  storage: _Storage, fetch: Callable[[_Storage], bytes]
) -> np.ndarray:
  raw = fetch(storage)
  if len(raw) != storage.size * storage.dtype.itemsize:
    raise ValueError(
      f"storage {storage.key!r} holds {len(raw)} bytes, expected "
      f"{storage.size} x {storage.dtype}"
    )
  return np.frombuffer(raw, storage.dtype)


def _view(name: str, tensor: _Tensor, storage: np.ndarray) -> np.ndarray:
  count = int(np.prod(tensor.shape, dtype=object)) if tensor.shape else 1
  spans = zip(tensor.shape, tensor.strides, strict=True)
  last = tensor.offset + sum((n - 1) * stride for n, stride in spans)
  if count and (last >= storage.size or count > storage.size):
    raise ValueError(f"tensor {name!r} reaches outside its storage")
  if not count:
    return np.empty(tensor.shape, storage.dtype)
  strides = [stride * storage.itemsize for stride in tensor.strides]
  view = np.lib.stride_tricks.as_strided(
    storage[tensor.offset :], tensor.shape, strides, writeable=False
  )
  return np.asarray(view, order="C")


def _describe(value: object) -> str:
  kind = value if isinstance(value, type) else type(value)
  if issubclass(kind, _Inert):
    return f"a {kind.__name__} object"
  return f"a {kind.__name__.strip('_').lower()}"
