"""Compares a model with closed-form edits of it, image by image.

  python -m launch.evaluate --config=configs/evaluate_shapes.py:tiny \
    --edits=runs/uce,runs/rece --workdir=runs/evaluation

Every model draws the same prompts from the same noise. Without `--edits` the
base alone is measured.
"""

from absl import app, flags, logging
from ml_collections import config_flags

from unlearning_jax import sharding
from unlearning_jax.edits import check_base
from unlearning_jax.experiments import comparison

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "The run's folder.", required=True
)
_EDITS = flags.DEFINE_list("edits", [], "Edit files, or folders of erase runs.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join other processes.")


def main(_):
  """Checks, loads, compares."""
  # The progress line is what a user follows; libraries only warn.
  logging.set_verbosity(logging.WARNING)
  sharding.initialize_distributed(_DISTRIBUTED.value)
  config = _CONFIG.value
  comparison.check(config)
  edits = comparison.load_edits(_EDITS.value)
  sd, params = comparison.load_model(config)
  for edit in edits.values():
    check_base(edit, params)
  comparison.check_fits(config, sd)
  run = comparison.open_run(_WORKDIR.value, config, params, edits)
  comparison.compare(run, sd, params, edits, config)
  run.mark_done()


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main)
