"""Runs one verb over a grid of settings, and shows all runs in one table.

  python -m launch.sweep --config=configs/erase_uce.py:tiny \
    --grid=hparams.lamb=0.1,0.5 --grid=concept=star,moon --seeds=3 \
    --workdir=runs/sweep

A key of the grid is a setting, an option of the config, or `edit`. Each cell is
a run in `cells/<id>`. Workers that start the same command in the same folder
share its cells; `--cell=3/16` takes the third of sixteen parts. A killed sweep
goes on; `--retry` runs the cells that failed. The exit status is 3 if some did.
"""

import importlib
import pathlib

from absl import flags as absl

from . import flags

_CONFIG, _WORKDIR = flags.config(), flags.workdir("The sweep's folder.")
_GRID = absl.DEFINE_multi_string("grid", [], "key=value,value; a key each.")
_SEEDS = absl.DEFINE_integer("seeds", 1, "Runs of each, seeds counting up.")
_CELL = absl.DEFINE_string("cell", "1/1", "A part of the cells, as 3/16.")
_VERB = absl.DEFINE_string("verb", "", "What runs; the config says it too.")
_PROTOCOL = absl.DEFINE_string("protocol", None, "For evaluations and audits.")
_TRACK = absl.DEFINE_list("track", [], "Also tell: tensorboard, wandb.")
_PACK = absl.DEFINE_integer("pack", 1, "Cells of one kind that run at once.")
_RETRY = absl.DEFINE_bool("retry", False, "Run the cells that failed, alone.")
_DRY_RUN = absl.DEFINE_bool("dry_run", False, "Print cells and cost only.")


def main(_: list[str]):
  """Flags to a plan to the cells."""
  from unlearning_jax.experiments import sweep

  configs = importlib.import_module("unlearning_jax.configs.sweep")
  part, root = sweep.part_of(_CELL.value), pathlib.Path(_WORKDIR.value)
  verb, base = configs.of_flags(absl.FLAGS, _VERB.value, _PROTOCOL.value)
  planned = sweep.plan(
    verb, base, sweep.parsed(_GRID.value), seeds=_SEEDS.value, texts=True
  )
  which = {"part": part, "retry": _RETRY.value}
  if _DRY_RUN.value:
    return print(sweep.described(planned, root, **which))
  which["pack"] = _PACK.value
  failed = sweep.run(planned, root, track=_TRACK.value, **which)
  print(f"{sweep.printed(root)}\nreport: {root.absolute()}/report.html")
  return flags.status(failed, "cells failed or are left; the page says why")


def listed() -> list[str]:
  """The verbs that a sweep can run."""
  return [*importlib.import_module("unlearning_jax.experiments.sweep").VERBS]


if __name__ == "__main__":
  flags.run(main, listed)
