"""Does it stay gone? Erases once, tunes many ways, measures what comes back.

  python -m launch.resurgence --workdir=runs/resurgence \
    --config=configs/finetune_resurgence_small.py

Every measurement is a row as soon as it is done: a run that was killed goes on
where it was, a cell that fails leaves the others alone, none is run twice. With
`--distributed` each process has its own cells, and no checkpoints within one.
`--dry_run` prints the cells and what they cost, `--list` the cells alone. The
report is written at the end, and with `--report` from what there is.

An erased model from elsewhere is tuned and measured as the config says of its
concept, instead of the study's own: `--edits=<name>/<concept>=<path>`.
"""

from absl import app, flags, logging
from ml_collections import config_flags

from unlearning_jax import settings, sharding
from unlearning_jax.experiments import common, resurgence

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", "", "The run's folder.")
_EDITS = flags.DEFINE_list(
  "edits", [], "A study of these alone: <name>/<concept>=<path>."
)
_LIST = flags.DEFINE_bool("list", False, "Only print the cells.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Only say what would be done.")
_REPORT = flags.DEFINE_bool("report", False, "Only write the report.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join other processes.")


def main(_):
  """Checks, runs what is left, reports."""
  # The progress line is what a user follows; libraries only warn.
  logging.set_verbosity(logging.WARNING)
  config = resurgence.with_edits(_CONFIG.value.to_dict(), _EDITS.value)
  given = settings.build(resurgence.Settings, config)
  if _LIST.value:
    print(*given.cells, sep="\n")
  elif _DRY_RUN.value:
    print(resurgence.described(given, _WORKDIR.value))
  else:
    sharding.initialize_distributed(_DISTRIBUTED.value)
    made = resurgence.setup(given, report=_REPORT.value)
    record = common.workdir(_WORKDIR.value, config, resurgence.Settings)
    resurgence.run(record, made, report=_REPORT.value)


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main)
