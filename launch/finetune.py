"""Fine-tunes a model, erased or not, and keeps what it is at every checkpoint.

  python -m launch.finetune --config=configs/finetune_full.py:tiny \
    --edit=runs/uce --workdir=runs/tuned

Writes `steps/<n>.safetensors`, an edit of the base for every step in
`config.checkpoints`: `launch.evaluate --edits=runs/uce,runs/tuned/steps/...`
draws the curve of what comes back. Without `--edit` the base itself is tuned. A
run that was killed goes on from the last of these steps or, where they lie far
apart, from the last multiple of `config.checkpoint_every`, if its data and the
number of its processes are the same. `--list` says what may train, what can
defend an erasure, and where images come from.
"""

import functools

from absl import app, flags, logging
from ml_collections import config_flags

from unlearning_jax import settings, sharding
from unlearning_jax.experiments import common, finetune

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.")
_EDIT = flags.DEFINE_string("edit", None, "An edit, or an erase run's folder.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join other processes.")
_LIST = flags.DEFINE_bool("list", False, "Print the choices and end.")


def main(_):
  """Flags to settings to the run."""
  if _LIST.value:
    print(finetune.listed())
    return
  # The progress line is what a user follows; libraries only warn.
  logging.set_verbosity(logging.WARNING)
  sharding.initialize_distributed(_DISTRIBUTED.value)
  config, path = _CONFIG.value, str(_WORKDIR.value)
  given = settings.build(finetune.Settings, config.to_dict())
  opener = functools.partial(common.workdir, path, config, finetune.Settings)
  model = common.load_model(given)
  if _EDIT.value:
    model = model.with_edit(common.read_edit(_EDIT.value, "--edit"))
  finetune.run(given, opener, model)


if __name__ == "__main__":
  flags.register_multi_flags_validator(
    ["config", "workdir", "list"],
    lambda given: given["list"] or None not in given.values(),
    "--config and --workdir are needed",
  )
  app.run(main)
