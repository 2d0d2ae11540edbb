"""An unpickler that builds tensors, and executes and imports nothing.

A pickle is a program. This unpickler knows three harmless words of it: rebuild
a tensor, name a storage, make an OrderedDict. It refuses every other global by
name, with one exception: training frameworks store callbacks, hyperparameters
and optimizer state beside the weights. Their globals (`_INERT`) become
placeholders that import nothing and ignore what the pickle does to them. A
placeholder among the weights themselves is refused.
"""

import os
import pickle
import pickletools
import re
from collections import OrderedDict
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
# Types that torch names apart from their storage, which is of bytes.
_DTYPES = {
  "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
  "float8_e5m2": ml_dtypes.float8_e5m2,
  "uint16": np.uint16, "uint32": np.uint32, "uint64": np.uint64,
}  # fmt: skip


# These are named tuples because a pickle can set attributes of any object that
# has a __dict__ or a __setstate__, as numpy arrays and dtypes have.
class _StorageType(NamedTuple):
  dtype: np.dtype


class Storage(NamedTuple):
  """A run of numbers elsewhere in the file."""

  dtype: np.dtype
  key: str
  size: int


class Tensor(NamedTuple):
  """A strided view of a storage."""

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]
  dtype: np.dtype


class Inert:
  """Stands in for an object that is not rebuilt."""

  __slots__ = ()

  def __new__(cls, *_args: object, **_kwargs: object) -> "Inert":
    """Ignores what the object would be made of."""
    return object.__new__(cls)

  def __init__(self, *_args: object, **_kwargs: object):
    pass

  def _swallow(self, *_args: object) -> None:
    pass

  __setstate__ = __setitem__ = append = extend = add = _swallow


class _RebuildTensor:
  __slots__ = ()

  def __call__(
    self, storage: object, offset: Any, shape: Any, strides: Any, *_: object
  ) -> Tensor:
    """Records a strided view without its hooks, metadata and gradients."""
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or len(shape) != len(strides):
      raise pickle.UnpicklingError("malformed tensor")
    if not all(type(n) is int and n >= 0 for n in numbers):
      raise pickle.UnpicklingError("malformed shape of a tensor")
    shape, strides = tuple(shape), tuple(strides)
    return Tensor(storage, offset, shape, strides, storage.dtype)


class _RebuildTypedTensor:
  __slots__ = ()

  def __call__(self, *given: Any) -> Tensor:
    """Records a view that has its own type over a storage of bytes."""
    # Storage, offset, shape, strides, two that are ignored, and the type.
    tensor, dtype = _RebuildTensor()(*given[:4]), given[6]
    if not isinstance(dtype, _StorageType):
      raise pickle.UnpicklingError("malformed tensor")
    return tensor._replace(dtype=dtype.dtype)


class _RebuildParameter:
  __slots__ = ()

  def __call__(self, data: object, *_: object) -> Tensor:
    """A parameter is its tensor."""
    if not isinstance(data, Tensor):
      raise pickle.UnpicklingError("malformed parameter")
    return data


_GLOBALS = {
  ("collections", "OrderedDict"): OrderedDict,
  ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
  ("torch._utils", "_rebuild_tensor_v3"): _RebuildTypedTensor(),
  ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
  ("torch.storage", "UntypedStorage"): _StorageType(np.dtype(np.uint8)),
  **{
    ("torch", name): _StorageType(np.dtype(dtype))
    for name, dtype in (_STORAGES | _DTYPES).items()
  },
}


class _Unpickler(pickle.Unpickler):
  """An unpickler that looks nothing up and imports nothing."""

  def __init__(self, file: "Within"):
    super().__init__(file)
    self.storages: dict[str, Storage] = {}

  def find_class(self, module: str, name: str) -> Any:
    """Resolves a global from the table, else to a placeholder, else refuses."""
    if (module, name) in _GLOBALS:
      return _GLOBALS[module, name]
    # Protocol 2, which torch writes, calls them as Python 2 did.
    builtin = module in ("builtins", "__builtin__") and name in _INERT_BUILTINS
    if builtin or module.split(".")[0] in _INERT:
      return type(f"{module}.{name}", (Inert,), {"__slots__": ()})
    raise pickle.UnpicklingError(
      f"it asks for {module}.{name}, which no weights file needs; refused, "
      "and nothing was executed. If it is a whole model, save its state_dict()"
    )

  def persistent_load(self, pid: Any) -> Storage:
    """Reads a reference to a storage elsewhere in the file."""
    kind, storage_type, key, _, size = pid[:5]
    if kind != "storage" or not isinstance(storage_type, _StorageType):
      raise pickle.UnpicklingError(f"unsupported reference, {describe(kind)}")
    if len(pid) == 6 and pid[5] is not None:
      raise pickle.UnpicklingError("views of storages are not supported")
    if not re.fullmatch(r"\w+", key) or type(size) is not int or size < 0:
      raise pickle.UnpicklingError(f"storage {key!r} has a malformed size")
    storage = Storage(storage_type.dtype, key, size)
    if self.storages.setdefault(key, storage) != storage:
      raise pickle.UnpicklingError(f"storage {key!r} is described twice")
    return storage


def check_memo(file: Any):
  """Refuses a pickle that makes the unpickler allocate a huge table.

  The table of what is remembered is as long as the largest index in it.
  """
  count = 0
  for opcode, argument, _ in pickletools.genops(file):
    if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
      count += 1
      if int(argument or 0) > 16 * count + 1024:
        raise pickle.UnpicklingError(f"remembers a value as number {argument}")


class Within:
  """A file that reads no more than it holds, whatever a pickle asks for.

  Python's own files make room for as many bytes as they are asked for.
  """

  def __init__(self, file: IO[bytes]):
    self._file = file
    start = file.tell()
    self._end = file.seek(0, os.SEEK_END)
    file.seek(start)
    self.readline, self.tell, self.seek = file.readline, file.tell, file.seek

  def read(self, size: int = -1) -> bytes:
    """At most `size` bytes."""
    left = max(self._end - self._file.tell(), 0)
    return self._file.read(left if size < 0 else min(size, left))


def load(file: IO[bytes]) -> tuple[Any, dict[str, Storage]]:
  """What the pickle at the file's place builds, and the storages it names.

  Raises:
    pickle.UnpicklingError: it asks for anything but tensors.
  """
  within = Within(file)
  start = within.tell()
  check_memo(within)
  within.seek(start)
  unpickler = _Unpickler(within)
  return unpickler.load(), unpickler.storages


def describe(value: object) -> str:
  """What a value is, as messages call it.

  They name the type alone: a small pickle can build tuples of tuples whose text
  would fill the memory.
  """
  kind = value if isinstance(value, type) else type(value)
  if issubclass(kind, Inert):
    return f"a {kind.__name__} object"
  return f"a {kind.__name__.strip('_').lower()}"
