"""Writes files and folders whole or not at all."""

import contextlib
import glob
import os
import pathlib
import re
import shutil
from collections.abc import Iterator, Mapping

import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save_file

from unlearning_jax import durable

DTYPES = ("float32", "float16", "bfloat16")
# A folder with this file is a model, which may be replaced.
MARK = "model_index.json"
# Sizes and checksums of the folder's other files.
SUMS = "sums.json"
# The files of a model folder that is written here. A folder with any other is
# not replaced, because the other would be lost.
_WRITTEN = re.compile(
  rf"{re.escape(MARK)}|{re.escape(SUMS)}|(text_encoder|unet|vae)/config\.json"
  r"|text_encoder/model\.safetensors"
  r"|(unet|vae)/diffusion_pytorch_model\.safetensors"
  r"|scheduler/scheduler_config\.json|tokenizer/merges\.txt"
  r"|tokenizer/(vocab|tokenizer|tokenizer_config|special_tokens_map"
  r"|added_tokens)\.json"
)


def is_written(name: str) -> bool:
  """Whether a model folder that is written here may hold such a file."""
  return _WRITTEN.fullmatch(name) is not None


def check_output(
  path: str | os.PathLike, overwrite: bool, *, folder: bool = False
) -> pathlib.Path:
  """Checks before any work that its result can be written; makes the parents.

  Args:
    folder: whether the result is a model folder, and not a file.

  Returns:
    The absolute path.

  Raises:
    ValueError: `path` exists without `overwrite`, is a folder but no model,
      holds a file that no model folder written here has, or cannot be written;
      or another process writes it.
  """
  path = pathlib.Path(path).absolute()
  if path.is_symlink() and path.is_dir():
    path = path.resolve()
  if any(leftover.exists() for leftover in _beside(path)):
    _mend(path)
  durable.sweep(path.parent, f".{glob.escape(path.name)}.*")
  if path.exists() and not overwrite:
    raise ValueError(
      f"{path}: exists; replace it with --overwrite or overwrite=True, or name "
      "another path"
    )
  _check_replaced(path, folder)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ValueError(f"{path}: cannot make its folder: {error}") from error
  if not os.access(path.parent, os.W_OK | os.X_OK):
    raise ValueError(f"{path}: its folder is not writable")
  return path


def _check_replaced(path: pathlib.Path, folder: bool):
  """Refuses to replace what was not written here."""
  if path.is_file() and folder:
    raise ValueError(
      f"{path}: is a file, and the output a folder; not replaced"
    )
  if not path.is_dir():
    return
  if not folder:
    raise ValueError(
      f"{path}: is a folder, and the output a file; not replaced"
    )
  if any(path.iterdir()) and not (path / MARK).is_file():
    raise ValueError(
      f"{path}: has no {MARK}, so it is not a model folder; not replaced"
    )
  for held in sorted(path.rglob("*")):
    name = held.relative_to(path).as_posix()
    if not (held.is_dir() or is_written(name)):
      raise ValueError(
        f"{path}: holds {name}, which would be lost; move it away, or name "
        "another path"
      )


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a temporary path; what it holds replaces `path` on success only.

  Raises:
    BusyError: another process writes it.
  """
  partial, old = _beside(path)
  held = _mend(path)
  try:
    yield partial
    if path.is_dir():
      path.rename(old)
    partial.replace(path)
  finally:
    _restore(path)
    del held


def _beside(path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
  """Where a new output is written, and where the old one waits meanwhile.

  No other program's files are called so, since they are removed.
  """
  partial, old = (
    path.with_name(f".{path.name}.unlearning_jax.{kind}")
    for kind in ("partial", "old")
  )
  return partial, old


def _mend(path: pathlib.Path) -> durable.Lock:
  """Undoes what a writer that was killed had begun; keeps the output.

  Raises:
    BusyError: another process writes it.
  """
  file = path.with_name(f".{path.name}.unlearning_jax.lock")
  held = durable.lock(file, path)
  _restore(path)
  return held


def _restore(path: pathlib.Path):
  """Puts the old output back where no new one has come; clears the rest."""
  partial, old = _beside(path)
  if old.exists() and not path.exists():
    old.rename(path)
  for leftover in (partial, old):
    if leftover.is_dir():
      shutil.rmtree(leftover)
    else:
      leftover.unlink(missing_ok=True)


def check_dtype(dtype: str):
  """Refuses a dtype that is not in `DTYPES`."""
  if dtype not in DTYPES:
    raise ValueError(f"dtype={dtype!r}; allowed: {', '.join(DTYPES)}")


def check_range(state: Mapping[str, np.ndarray], dtype: str):
  """Refuses a tensor that is not finite, or not in the range of `dtype`."""
  check_dtype(dtype)
  for name, value in state.items():
    # Also catches NaN, which compares as False.
    if not np.abs(value).max(initial=0) <= float(ml_dtypes.finfo(dtype).max):
      raise ValueError(
        f"{name!r} holds NaN, infinity or values too large for {dtype}"
      )


def rounding(
  states: Mapping[str, Mapping[str, np.ndarray]],
  dtype: str,
  base: Mapping[str, Mapping[str, np.ndarray]] | None = None,
) -> float:
  """What storing in `dtype` loses: |stored - exact| / |exact - base|.

  Args:
    states: {component: tensors}.
    base: what the weights changed from, of which only changed tensors count;
      None for zero.
  """
  off = size = 0.0
  for part, tensors in states.items():
    for name, new in tensors.items():
      old = base[part][name] if base else np.float32(0)
      if new is old or (base and np.array_equal(new, old)):
        continue
      off += float(np.sum((new.astype(dtype).astype(np.float64) - new) ** 2))
      size += float(np.sum((np.float64(new) - old) ** 2))
  return float(np.sqrt(off / size)) if size else 0.0


def write_safetensors(
  path: pathlib.Path,
  state: Mapping[str, np.ndarray],
  dtype: str,
  metadata: Mapping[str, str] | None = None,
) -> None:
  """Writes floating point tensors, and `metadata`, as torch's libraries do.

  Raises:
    ValueError: as `check_range`; or the disk is full, or fails.
  """
  check_range(state, dtype)
  # save_file makes a file that only its owner may read. The mode of any new
  # file in this folder is put back below.
  path.touch()
  mode = path.stat().st_mode
  # It writes memory as it lies: a transposed view would be scrambled without
  # an error.
  try:
    save_file(
      {k: np.asarray(v, np.dtype(dtype), order="C") for k, v in state.items()},
      path,
      metadata={"format": "pt", **(metadata or {})},
    )
  except safetensors.SafetensorError as error:
    raise ValueError(f"{path}: cannot be written: {error}") from error
  path.chmod(mode)
