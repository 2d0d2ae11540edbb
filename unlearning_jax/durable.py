"""Files that a kill cannot damage: replaced whole, or grown by whole lines."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import re
import secrets
import stat
import weakref
from collections.abc import Iterator, Mapping
from typing import IO, Any, TypeVar

import numpy as np
import safetensors
import safetensors.numpy

# No other program's hidden file is called so.
_PART = re.compile(r"\..+\.[0-9a-f]{8}\.part")
# File -> the lock that this process has on it.
_HELD: weakref.WeakValueDictionary[str, "Lock"] = weakref.WeakValueDictionary()
_MOST_SAID = 2000
T = TypeVar("T")


class DamagedError(ValueError):
  """A file does not hold what was written."""


class BusyError(ValueError):
  """Another process is writing a file or a folder."""


def is_full(error: BaseException | None) -> bool:
  """Whether a full disk caused an error, which a library may have wrapped."""
  while error is not None:
    full = {errno.ENOSPC, errno.EDQUOT}
    if isinstance(error, OSError) and error.errno in full:
      return True
    if os.strerror(errno.ENOSPC) in str(error):
      return True
    error = error.__cause__ or error.__context__
  return False


@contextlib.contextmanager
def _naming(path: pathlib.Path) -> Iterator[None]:
  """Names the file in an error of a write, which the system does not."""
  try:
    yield
  except OSError as error:
    if error.errno is None or error.filename is not None:
      raise
    raise OSError(error.errno, error.strerror, str(path)) from error


class Lock:
  """Keeps something for this process, see `lock`; ends with the object.

  Attributes:
    file: the locked file, opened for appending.
    user: whoever asked for it last.
  """

  def __init__(self, path: pathlib.Path, what: pathlib.Path, keep: bool):
    self.user: object = None
    self.file = _locked(path, what, keep)
    # At the end of a program, `__del__` would come after the end of modules.
    weakref.finalize(self, _release, self.file, path, os.getpid(), keep)


def _release(file: int, path: pathlib.Path, owner: int, keep: bool):
  # A fork of the owner only closes it.
  if os.getpid() == owner and not keep and _is_at(file, path):
    with contextlib.suppress(OSError):
      path.unlink()
  os.close(file)


def lock(file: pathlib.Path, what: pathlib.Path, *, keep: bool = False) -> Lock:
  """Keeps other processes from writing something, as long as it is held.

  Within a process all callers get the same lock, so that a run which failed in
  a notebook can be started again there.

  Args:
    file: is made if there is none, and goes with the lock.
    what: the file or folder that is kept, for messages.
    keep: whether the file stays.

  Raises:
    BusyError: another process has it.
  """
  key = os.path.realpath(file)
  held = _HELD.get(key)
  # Its folder may have been removed, or another copy put in its place.
  if held is None or not _is_at(held.file, pathlib.Path(key)):
    held = Lock(pathlib.Path(key), what, keep)
  _HELD[key] = held
  return held


def _locked(path: pathlib.Path, what: pathlib.Path, keep: bool) -> int:
  """Opens a file for appending, and locks it.

  Raises:
    BusyError: another process has locked it; the message names `what`.
  """
  while True:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      os.close(file)
      if not isinstance(error, BlockingIOError):
        raise
      # What stays holds rows; a copy of it is free.
      way = f"put a copy in the place of {path}" if keep else f"delete {path}"
      raise BusyError(
        f"{what} is being written by another run; wait for it to end or use "
        f"another folder; if that run's machine has died, {way}"
      ) from error
    # Whoever had it before may have removed the file.
    if _is_at(file, path):
      return file
    os.close(file)


def _is_at(file: int, path: pathlib.Path) -> bool:
  """Whether an open file is the one that stands at a path."""
  try:
    return os.path.samestat(os.fstat(file), path.stat())
  except FileNotFoundError:
    return False


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[IO[bytes]]:
  """Yields a file to write; it replaces `path` only if no error is raised."""
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
  try:
    with _naming(path), _living(part) as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
      # Before the lock goes, since `sweep` waits for that.
      part.replace(path)
  finally:
    part.unlink(missing_ok=True)


def _living(part: pathlib.Path) -> IO[bytes]:
  """A new file, locked: `sweep` sees that its writer lives."""
  while True:
    file = open(part, "wb")
    fcntl.flock(file, fcntl.LOCK_EX)
    # Before the lock, it may have been taken for a dead writer's.
    if _is_at(file.fileno(), part):
      return file
    file.close()


def sweep(folder: pathlib.Path, pattern: str = "**/.*"):
  """Removes what dead writers of `replacing` left anywhere in a folder.

  Args:
    pattern: of the files that are looked at.
  """
  for path in folder.glob(pattern):
    if not _PART.fullmatch(path.name) or not path.is_file():
      continue
    # Network file systems lock only what is open for writing.
    with contextlib.suppress(OSError), open(path, "r+b") as file:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      path.unlink()


def save_tensors(
  path: str | os.PathLike[str],
  tensors: Mapping[str, np.ndarray],
  metadata: Mapping[str, str],
) -> None:
  """Writes a safetensors file, whole or not at all."""
  # safetensors writes memory as it lies and would scramble a transposed view.
  plain = {name: np.ascontiguousarray(leaf) for name, leaf in tensors.items()}
  with replacing(pathlib.Path(path)) as file:
    file.write(safetensors.numpy.save(plain, dict(metadata)))


def load_tensors(
  path: str | os.PathLike[str], layout: str | None = None
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """The tensors of a safetensors file, and its metadata.

  Args:
    layout: value that the metadata must have for `format`; None for any.

  Raises:
    DamagedError: the file is not a safetensors file, or cannot be read.
    ValueError: it has another format; a tensor is not finite.
  """
  try:
    with safetensors.safe_open(str(path), framework="numpy") as file:
      metadata = dict(file.metadata() or {})
      tensors = {name: file.get_tensor(name) for name in file.keys()}
  except (safetensors.SafetensorError, OSError) as error:
    raise DamagedError(f"{path} is not a safetensors file: {error}") from error
  if layout is not None and metadata.get("format") != layout:
    raise ValueError(
      f"{path}: format={metadata.get('format')!r}; allowed: {layout!r}"
    )
  for name, value in tensors.items():
    if not np.isfinite(value).all():
      raise ValueError(f"{path}: {name!r} holds NaN or infinity")
  return tensors, metadata


def check_plain(path: str | os.PathLike[str]):
  """Refuses what is no file to read: a pipe would wait for ever.

  Raises:
    ValueError: there is no such file, or it is a folder, a pipe or a device.
  """
  if not os.path.exists(path):
    raise ValueError(f"{os.fspath(path)}: no such file")
  if not os.path.isfile(path):
    raise ValueError(
      f"{os.fspath(path)}: is a folder, a pipe or a device, and no file"
    )


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
  """Reads a JSON object; it may begin with a byte-order mark.

  Raises:
    ValueError: there is no such file, or it holds no JSON or no object.
  """
  check_plain(path)
  try:
    text = pathlib.Path(path).read_bytes()
  except OSError as error:
    raise ValueError(f"{os.fspath(path)}: not readable: {error}") from error
  return from_json(text, os.fspath(path))


def from_json(text: str | bytes, where: str, kind: type[T] = dict) -> T:
  """The JSON value of a text.

  Args:
    where: the file, and the place in it, for messages.
    kind: the type that it must have, `dict` or `list`; `object` for any.

  Raises:
    ValueError: it is no JSON, or of another type.
  """
  try:
    value = json.loads(text)
  # Lists in lists, thousands deep, are a RecursionError.
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{where}: not readable as JSON: {error}") from error
  if not isinstance(value, kind):
    wanted = "an object" if kind is dict else "a list"
    raise ValueError(f"{where}: holds a {type(value).__name__}, not {wanted}")
  return value


@contextlib.contextmanager
def explaining(
  where: str | os.PathLike[str],
  why: str = "is damaged, or not what this version writes",
  *,
  values: bool = True,
) -> Iterator[None]:
  """Names the file in errors about what it holds.

  Args:
    where: the file, or the folder of a record.
    why: what such an error means.
    values: explains ValueErrors too; False where they say enough themselves.

  Raises:
    ValueError: what is inside failed at a key, an entry or a type that the
      file should have; or raised a ValueError that does not name it.
  """
  try:
    yield
  except (DamagedError, BusyError):
    raise
  except (ValueError, LookupError, TypeError, AttributeError) as error:
    said, name = str(error), os.fspath(where)
    if isinstance(error, ValueError) and (name in said or not values):
      raise
    if not isinstance(error, ValueError):
      said = f"{type(error).__name__}: {said}"
    raise ValueError(f"{name}: {why}: {said[:_MOST_SAID]}") from error


def read_text(path: pathlib.Path) -> str | None:
  """What a file says; None where there is none, or none any more."""
  try:
    if not stat.S_ISREG(path.stat().st_mode):
      check_plain(path)
    return path.read_text()
  except FileNotFoundError:
    return None


class JsonLines:
  """A file of JSON objects, one a line, with one writer and many readers.

  Within a process the last writer counts: that of a run which failed may live
  on in a traceback.
  """

  def __init__(self, path: pathlib.Path):
    self._path = path
    self._lock: Lock | None = None
    # Not itself: it would live as long as the lock, and the lock with it.
    self._name = object()

  def open(self) -> int:
    """Locks the file for writing and cuts a torn last line off.

    Returns:
      The open file.

    Raises:
      BusyError: another process is writing it, or a later run of this one.
    """
    if self._lock is None:
      self._lock = lock(self._path, self._path, keep=True)
      self._lock.user = self._name
      # Without the lock, a torn line might be one that is being written.
      whole = self._path.read_bytes().rfind(b"\n") + 1
      os.ftruncate(self._lock.file, whole)
    if self._lock.user is not self._name:
      raise BusyError(
        f"{self._path} is being written by a later run of this process; use "
        "that one"
      )
    return self._lock.file

  def append(self, value: Mapping[str, Any], *, what: str):
    """Writes one whole line and waits until the disk has it.

    Raises:
      ValueError: a value is not finite; the message begins with `what`.
    """
    line = to_json(value, what).encode() + b"\n"
    file = self.open()
    size = os.fstat(file).st_size
    with _naming(self._path):
      try:
        while line:
          line = line[os.write(file, line) :]
        os.fsync(file)
      except OSError:
        # Half a line would damage the next.
        os.ftruncate(file, size)
        raise

  def read(self) -> Iterator[dict[str, Any]]:
    """Every whole line; skips a torn last line and leaves it in the file.

    Raises:
      ValueError: a whole line is no JSON object.
    """
    if not self._path.exists():
      return
    check_plain(self._path)
    lines = self._path.read_bytes().split(b"\n")[:-1]
    for number, line in enumerate(lines, 1):
      yield from_json(line, f"{self._path}, line {number}, is damaged")


def to_json(value: object, what: str, indent: int | None = None) -> str:
  """JSON text of plain, numpy and JAX values.

  Raises:
    ValueError: a value is not finite or has no JSON form; the message begins
      with `what`.
  """

  def plain(x: Any) -> Any:
    if hasattr(x, "tolist"):
      return x.tolist()
    raise TypeError(f"{x!r} has no JSON form")

  try:
    return json.dumps(value, default=plain, allow_nan=False, indent=indent)
  except (TypeError, ValueError) as error:
    raise ValueError(f"{what}: {error}; in {value!r}"[:500]) from error
