"""Checkpoints of any pytree: atomic, sharded, restored only into a target.

Only this module uses orbax. It stores a tree flat, each leaf under its path
(`params/unet/conv_in/kernel`). So the target alone decides the structure, and
an error can name every leaf that does not fit.
"""

import functools
import hashlib
import json
import os
import pathlib
import secrets
import stat
from types import ModuleType
from typing import Any, TypeVar

import jax
import numpy as np
from absl import logging

from unlearning_jax import durable, processes

Tree = TypeVar("Tree")

_SUMS = "sums.json"


def save(
  path: str | os.PathLike[str], step: int, tree: Any, *, keep_n: int = 2
):
  """Writes `tree` as step `step`, whole or not at all, and waits for the disk.

  Args:
    path: the run's checkpoint folder; it is made if it does not exist.
    step: training step, greater than every step in the folder.
    tree: pytree of numpy or (possibly sharded) JAX arrays and numbers.
    keep_n: how many of the latest steps stay.

  Raises:
    ValueError: the step is not greater than those in the folder.
  """
  with _manager(path, keep_n) as manager:
    latest = manager.latest_step()
    if latest is not None and step <= latest:
      raise ValueError(f"checkpoint: step {step} is not after {latest}: {path}")
    flat = {
      name: leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
      for name, leaf in _flatten(tree).items()
    }
    manager.save(step, args=_orbax().args.StandardSave(flat))
  # The storage gives back numbers with a flipped bit as if nothing were wrong.
  if jax.process_index() == 0:
    folder = pathlib.Path(path) / str(step)
    with durable.replacing(folder / _SUMS) as file:
      file.write(json.dumps(_sums(folder), indent=0).encode())
  # Those that left for good would end this process while it still reads.
  processes.wait_for_all("checkpoint saved")


def save_new(path: str | os.PathLike[str], step: int, tree: Any):
  """`save`, unless the folder has this step."""
  if latest_step(path) != step:
    save(path, step, tree)


def latest_step(path: str | os.PathLike[str]) -> int | None:
  """The last complete step in a checkpoint folder; None when there is none."""
  if not pathlib.Path(path).is_dir():
    return None
  _check_plain(pathlib.Path(path))
  with durable.explaining(path), _manager(path) as manager:
    return manager.latest_step()


def restore(
  path: str | os.PathLike[str], target: Tree, step: int | None = None
) -> Tree:
  """Reads a checkpoint into a tree with structure and placement of `target`.

  Args:
    path: a folder that `save` wrote.
    target: pytree of arrays or `jax.ShapeDtypeStruct`s. It decides structure,
      shapes and dtypes. A leaf with a sharding is placed by it, on other
      devices than those that saved if need be; a numpy leaf becomes numpy.
    step: None for the last.

  Raises:
    ValueError: there is no such step; leaves are missing, extra, or of another
      shape or dtype, each by name.
    durable.DamagedError: the step cannot be read, nor is there an older one.
  """
  if not pathlib.Path(path).is_dir():
    raise ValueError(f"checkpoint: there is no folder {path}")
  _check_plain(pathlib.Path(path))
  wanted = {
    name: leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    for name, leaf in _flatten(target).items()
  }
  with durable.explaining(path), _manager(path) as manager:
    steps = sorted(manager.all_steps())
  if not steps or (step is not None and step not in steps):
    raise ValueError(f"checkpoint: no step {step} in {path}; it has {steps}")
  flat = _last_whole(path, steps if step is None else [step], wanted)
  leaves = [flat[name] for name in wanted]
  return jax.tree.unflatten(jax.tree.structure(target), leaves)


def _last_whole(
  path: str | os.PathLike[str], steps: list[int], wanted: dict[str, Any]
) -> dict[str, Any]:
  """The leaves of the last step that can be read; renames those that cannot."""
  *before, step = steps
  # One process reads all files. All raise what it finds: the others would wait
  # in orbax for one that raises alone.
  folder = pathlib.Path(path) / str(step)
  found = _damage(folder) if jax.process_index() == 0 else ""
  found = "".join(processes.wait_for_all("checkpoint compared", found))
  try:
    if found:
      raise durable.DamagedError(found)
    with _manager(path) as manager:
      metadata = manager.item_metadata(step)
      problems = _misfits(metadata.tree, wanted)
      if not problems:
        restore_args = _orbax().args.StandardRestore(wanted)
        return manager.restore(step, args=restore_args)
  # Whatever orbax and its storage raise of a file that was cut or deleted.
  except Exception as error:
    why = str(error).split("\n")[0]
    # Several processes would have to agree on another step.
    if not before or jax.process_count() > 1:
      raise durable.DamagedError(
        f"checkpoint: step {step} in {path} cannot be read; delete {folder} to "
        f"go on from the step before, if there is one: {why}"
      ) from error
    flat = _last_whole(path, before, wanted)
    logging.warning(
      "checkpoint: step %s in %s cannot be read, so the run goes on from an "
      "earlier one: %s", step, path, why,
    )  # fmt: skip
    # Kept, since another fault than damage may be the cause.
    folder.rename(folder.with_name(f"damaged-{step}-{secrets.token_hex(2)}"))
    return flat
  raise ValueError(
    f"checkpoint: step {step} in {path} does not fit:\n  "
    + "\n  ".join(problems)
  )


def _sums(folder: pathlib.Path) -> dict[str, str]:
  """File -> hash, of all files of a step but the hashes themselves."""
  found = {}
  for file in sorted(folder.rglob("*")):
    if file.is_file() and file.name != _SUMS and not file.name.startswith("."):
      with open(file, "rb") as stream:
        digest = hashlib.file_digest(stream, "blake2b").hexdigest()
      found[file.relative_to(folder).as_posix()] = digest
  return found


def _damage(folder: pathlib.Path) -> str:
  """Which file of a step is not what was saved; "" if all are.

  A step that has no hashes is older, or its run was killed before them.
  """
  if not (folder / _SUMS).is_file():
    return ""
  try:
    was, now = durable.read_json(folder / _SUMS), _sums(folder)
    wrong = [name for name in sorted(was) if now.get(name) != was[name]]
  # The caller raises it, in every process.
  except Exception as error:
    return str(error) or type(error).__name__
  return f"{folder / wrong[0]} is not what was saved" if wrong else ""


def _check_plain(folder: pathlib.Path):
  """Refuses a pipe or a device among the files, which would be waited for."""
  # Unlike rglob, it passes over a folder that goes meanwhile.
  for held in (
    pathlib.Path(at, name) for at, _, names in os.walk(folder) for name in names
  ):
    try:
      mode = held.lstat().st_mode
    except FileNotFoundError:
      # Another process has removed a step that is no longer kept.
      continue
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
      raise durable.DamagedError(
        f"checkpoint: {held} is no file and no folder; delete it"
      )


@functools.cache
def _orbax() -> ModuleType:
  # The import takes half a second, which only training needs.
  import orbax.checkpoint

  return orbax.checkpoint


def _manager(path: str | os.PathLike[str], keep_n: int | None = None) -> Any:
  """An orbax `CheckpointManager` of a folder."""
  ocp = _orbax()
  options = ocp.CheckpointManagerOptions(
    max_to_keep=keep_n,
    enable_async_checkpointing=False,
    cleanup_tmp_directories=keep_n is not None,
  )
  handler = ocp.StandardCheckpointHandler()
  folder = pathlib.Path(path).absolute()
  return ocp.CheckpointManager(folder, options=options, item_handlers=handler)


def _flatten(tree: Any) -> dict[str, Any]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in leaves
  }


def _misfits(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
  problems = [f"missing: {name}" for name in wanted if name not in stored]
  problems += [f"extra: {name}" for name in stored if name not in wanted]
  for name in wanted.keys() & stored.keys():
    have, want = (
      f"{tuple(x.shape)} {np.dtype(x.dtype)}"
      for x in (stored[name], wanted[name])
    )
    if have != want:
      problems.append(f"misshaped: {name} is {have}, want {want}")
  return sorted(problems)
