"""Attacks every victim of every task with every attack; one table of it all.

  python -m launch.attack_matrix --workdir=runs/matrix \
    --config=configs/attack_matrix_shapes.py

Victims are the model itself, `base`, the config's erasures, which are made
here, and those that `--edits=<task>/<name>=<path>` brings. A cell that is done
is never run again, one that fails is recorded and the others go on; what was
killed is taken up again by the same command. Several processes share the cells.
"""

import pathlib
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from unlearning_jax import sharding
from unlearning_jax.experiments import attack_cells, comparison, matrix_summary

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "The matrix's folder.", required=True
)
_EDITS = flags.DEFINE_list("edits", [], "More victims: <task>/<name>=<path>.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join other processes.")


def given_edits(listed: Sequence[str]) -> dict[str, Any]:
  """Edits by `<task>/<name>`.

  Raises:
    ValueError: not of the form `<task>/<name>=<path>`, or no such file.
  """
  found = {}
  for item in listed:
    name, equals, path = item.partition("=")
    if not equals or name in found:
      raise ValueError(f"--edits: {item!r} is not a new <task>/<name>=<path>")
    (found[name],) = comparison.load_edits([path]).values()
  return found


def tried(
  folder: pathlib.Path, work: Callable[..., None], *arguments: Any
) -> bool:
  """Does a piece of work; an error is kept in its folder, and told."""
  failed = folder / "failed.txt"
  failed.unlink(missing_ok=True)
  try:
    work(*arguments)
  except Exception:
    # One cell's trouble is not the others': the table says that it failed.
    folder.mkdir(parents=True, exist_ok=True)
    failed.write_text(traceback.format_exc())
    traceback.print_exc()
    return False
  return True


def main(_: Sequence[str]):
  """Checks, erases, attacks cell by cell, summarizes after each."""
  # The progress line is what a user follows; libraries only warn.
  logging.set_verbosity(logging.WARNING)
  sharding.initialize_distributed(_DISTRIBUTED.value)
  config, root = _CONFIG.value, pathlib.Path(_WORKDIR.value)
  given = given_edits(_EDITS.value)
  attack_cells.check(config, given)
  matrix = attack_cells.Matrix(config, root, given)
  tasks = list(config.tasks)
  if jax.process_index() == 0:
    for task in tasks:
      for victim in config.erasures:
        tried(root / task / victim, matrix.erase, task, victim)
  sharding.wait_for_all("erased")
  listed = attack_cells.cells(config, tasks, given)
  failed = 0
  for i, cell in enumerate(listed):
    if i % jax.process_count() != jax.process_index():
      continue
    label, folder = f"{i + 1}/{len(listed)} {cell}", root / str(cell)
    # A page of all rows takes seconds: only where there is news.
    news = not (folder / "DONE").exists()
    failed += not tried(folder, matrix.run, cell, label)
    if news and jax.process_index() == 0:
      matrix_summary.conclude(config, root, listed)
  sharding.wait_for_all("attacked")
  if jax.process_index() == 0:
    print(matrix_summary.conclude(config, root, listed))
  if failed:
    sys.exit(f"{failed} cells failed; see failed.txt in their folders")


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main)
