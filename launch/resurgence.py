"""Does it stay gone? Erases, fine-tunes in many ways, measures what returns.

  python -m launch.resurgence --workdir=runs/resurgence \
    --config=configs/finetune_resurgence_small.py

Each measurement becomes a row when it is done. Start a killed study again: it
goes on where it was, and no cell runs twice. A failed cell does not stop the
others. With `--distributed` each process has its own cells, and no checkpoints
within one. `--dry_run` prints the cells and their cost, `--list` the choices.
The report comes at the end; `--report` writes it earlier, from what is there.

`--edits=<name>/<concept>=<path>` studies an erased model from elsewhere, tuned
and measured as the config has it for that concept.
"""

import importlib

from absl.flags import DEFINE_bool, DEFINE_list

from . import flags

_CONFIG = flags.config()
_WORKDIR = flags.workdir()
_EDITS = DEFINE_list("edits", [], "Models to study: <name>/<concept>=<path>.")
_DRY_RUN = DEFINE_bool("dry_run", False, "Print cells and cost only.")
_REPORT = DEFINE_bool("report", False, "Write the report only.")


def main(_: list[str]):
  """Flags to settings to the experiment."""
  from unlearning_jax.experiments import common, resurgence

  config = resurgence.with_edits(_CONFIG.value.to_dict(), _EDITS.value)
  given, path = flags.settings(resurgence.Settings, config), _WORKDIR.value
  if _DRY_RUN.value:
    return print(resurgence.described(given, path))
  made, report = resurgence.setup(given, report=_REPORT.value), _REPORT.value
  opened = common.workdir(path, config, resurgence.Settings, locked=not report)
  failed = resurgence.run(opened, made, report=report)
  return flags.status(failed, "cells failed or are left; the page says why")


def listed() -> list[str]:
  """The concepts, methods and tuning sets of the configs."""
  from unlearning_jax import extensions

  config = importlib.import_module("unlearning_jax.configs.resurgence")

  kinds = {
    "concepts": config.CONCEPTS,
    "methods": [*config.METHODS, *config.VARIANTS],
    "sets": extensions.world("shapes").SETS,
  }
  return [f"{kind}: {', '.join(names)}" for kind, names in kinds.items()]


if __name__ == "__main__":
  flags.run(main, listed)
