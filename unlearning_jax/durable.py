"""Files that a kill cannot damage: replaced whole, or grown by whole lines."""

import contextlib
import fcntl
import json
import os
import pathlib
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import IO, Any, TypeVar

import numpy as np
import safetensors
import safetensors.numpy

# No other program's hidden file is called so.
_PART = re.compile(r"\..+\.[0-9a-f]{8}\.part")
_YOUNG_S = 60
_MOST_SAID = 2000
T = TypeVar("T")


class DamagedError(ValueError):
  """A file does not hold what was written."""


class BusyError(ValueError):
  """Another process is writing a file."""


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[IO[bytes]]:
  """Yields a file to write; it replaces `path` only if no error is raised."""
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
  try:
    with open(part, "wb") as file:
      # Tells `sweep` that the writer lives.
      fcntl.flock(file, fcntl.LOCK_EX)
      yield file
      file.flush()
      os.fsync(file.fileno())
    part.replace(path)
  finally:
    part.unlink(missing_ok=True)


def sweep(folder: pathlib.Path):
  """Removes what dead writers of `replacing` left anywhere in a folder."""
  for path in folder.rglob(".*"):
    if not _PART.fullmatch(path.name) or not path.is_file():
      continue
    with contextlib.suppress(OSError), open(path, "rb") as file:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      # A writer that has just made its file has no lock yet.
      if time.time() - path.stat().st_mtime > _YOUNG_S:
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
) -> Iterator[None]:
  """Names the file in errors about what it holds.

  Args:
    where: the file, or the folder of a record.
    why: what such an error means.

  Raises:
    ValueError: what is inside failed at a key, an entry or a type that the
      file should have; or raised a ValueError that does not name it.
  """
  try:
    yield
  except DamagedError:
    raise
  except (ValueError, LookupError, TypeError, AttributeError) as error:
    said, name = str(error), os.fspath(where)
    if isinstance(error, ValueError) and name in said:
      raise
    if not isinstance(error, ValueError):
      said = f"{type(error).__name__}: {said}"
    raise ValueError(f"{name}: {why}: {said[:_MOST_SAID]}") from error


def read_text(path: pathlib.Path) -> str | None:
  """What a file says; None where there is none, or none any more."""
  try:
    if path.exists():
      check_plain(path)
    return path.read_text()
  except FileNotFoundError:
    return None


class JsonLines:
  """A file of JSON objects, one a line, with one writer and many readers."""

  def __init__(self, path: pathlib.Path):
    self._path = path
    self._file: int | None = None

  def open(self):
    """Locks the file for writing and cuts a torn last line off.

    Raises:
      BusyError: another process is writing it.
    """
    if self._file is not None:
      return
    file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      os.close(file)
      raise BusyError(
        f"{self._path} is being written by another run; wait for it to end "
        "or use another folder"
      ) from error
    # Without the lock, a torn line might be one that is being written.
    os.ftruncate(file, self._path.read_bytes().rfind(b"\n") + 1)
    self._file = file

  def append(self, value: Mapping[str, Any], *, what: str):
    """Writes one whole line and waits until the disk has it.

    Raises:
      ValueError: a value is not finite; the message begins with `what`.
    """
    line = to_json(value, what).encode() + b"\n"
    self.open()
    assert self._file is not None
    while line:
      line = line[os.write(self._file, line) :]
    os.fsync(self._file)

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

  def __del__(self):
    if self._file is not None:
      os.close(self._file)


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
