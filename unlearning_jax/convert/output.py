"""Writing without leaving anything half-written."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping

import numpy as np
from safetensors.numpy import save_file

DTYPES = {"float32": np.float32, "float16": np.float16}
# What marks a folder as one that this package (or diffusers) wrote, and that
# may be replaced.
MARK = "model_index.json"


def check_output(path: str | os.PathLike, overwrite: bool) -> pathlib.Path:
  """Finds out before the work whether its result can be written.

  Args:
    path: the file or folder to be written; its parents are made.
    overwrite: whether it may exist.

  Returns:
    The absolute path.

  Raises:
    ValueError: it exists and may not, or is a folder with other things in it,
      or cannot be written.
  """
  path = pathlib.Path(path).absolute()
  if path.exists() and not overwrite:
    raise ValueError(
      f"{path}: exists; ask for overwriting to replace it, --overwrite or "
      "overwrite=True, or name another"
    )
  if path.is_dir() and any(path.iterdir()) and not (path / MARK).is_file():
    raise ValueError(
      f"{path}: has no {MARK}, so it is not a model folder; not replaced"
    )
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ValueError(f"{path}: cannot make its folder: {error}") from error
  if not os.access(path.parent, os.W_OK | os.X_OK):
    raise ValueError(f"{path}: its folder is not writable")
  return path


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Gives a temporary path that takes the place of `path` on success only.

  Args:
    path: the file or folder that is to appear, whole or not at all.
  """
  suffix = f".{os.getpid()}"
  partial = path.with_name(f".{path.name}.partial{suffix}")
  old = path.with_name(f".{path.name}.old{suffix}")
  try:
    yield partial
    if path.is_dir():
      path.rename(old)
    try:
      partial.replace(path)
    except OSError:
      if old.exists():
        old.rename(path)
      raise
  finally:
    for leftover in (partial, old):
      if leftover.is_dir():
        shutil.rmtree(leftover)
      else:
        leftover.unlink(missing_ok=True)


def check_dtype(dtype: str) -> np.dtype:
  """The numpy dtype of a name in `DTYPES`."""
  if dtype not in DTYPES:
    raise ValueError(f"dtype={dtype!r}; allowed: {', '.join(DTYPES)}")
  return np.dtype(DTYPES[dtype])


def write_safetensors(
  path: pathlib.Path,
  state: Mapping[str, np.ndarray],
  dtype: str,
  metadata: Mapping[str, str] | None = None,
) -> None:
  """Writes tensors as torch's libraries expect them.

  Args:
    path: the file.
    state: finite floating point tensors by name.
    dtype: a name in `DTYPES`.
    metadata: text to write beside them.

  Raises:
    ValueError: a tensor is not finite, or not in the range of `dtype`.
  """
  target = check_dtype(dtype)
  for name, value in state.items():
    # Also catches NaN, which compares as False.
    if not np.abs(value).max(initial=0) <= np.finfo(target).max:
      raise ValueError(
        f"{name!r} holds NaN, infinity or values too large for {dtype}"
      )
  # save_file makes a file that only its owner may read; others get what they
  # get of any new file here.
  path.touch()
  mode = path.stat().st_mode
  # It writes the memory as it lies: a transposed view would be scrambled
  # without an error.
  save_file(
    {k: np.asarray(v, target, order="C") for k, v in state.items()},
    path,
    metadata={"format": "pt", **(metadata or {})},
  )
  path.chmod(mode)
