"""Does it stay gone? Erases once, tunes many ways, measures what comes back.

  python -m launch.resurgence --workdir=runs/resurgence \
    --config=configs/finetune_resurgence_small.py

Every measurement is a row as soon as it is done: a run that was killed goes on
where it was, a cell that fails leaves the others alone, none is run twice. With
`--distributed` each process has its own cells, and no checkpoints within one.
`--dry_run` prints the cells and what they cost, `--list` what there is to
choose from. The report is written at the end, and with `--report` from what
there is.

An erased model from elsewhere is tuned and measured as the config says of its
concept, instead of the study's own: `--edits=<name>/<concept>=<path>`.
"""

import importlib

from absl.flags import DEFINE_bool, DEFINE_list

from . import flags

_CONFIG = flags.config()
_WORKDIR = flags.workdir()
_EDITS = DEFINE_list("edits", [], "A study of these: <name>/<concept>=<path>.")
_DRY_RUN = DEFINE_bool("dry_run", False, "Only say what would be done.")
_REPORT = DEFINE_bool("report", False, "Only write the report.")


def main(_: list[str]):
  """Flags to settings to the experiment."""
  from unlearning_jax.experiments import common, resurgence

  config = resurgence.with_edits(_CONFIG.value.to_dict(), _EDITS.value)
  given = flags.settings(resurgence.Settings, config)
  if _DRY_RUN.value:
    print(resurgence.described(given, _WORKDIR.value))
    return
  made = resurgence.setup(given, report=_REPORT.value)
  record = common.workdir(_WORKDIR.value, config, resurgence.Settings)
  resurgence.run(record, made, report=_REPORT.value)


def listed() -> list[str]:
  """What the configs of studies can erase, tune and tune on."""
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
