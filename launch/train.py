"""Trains one part of the Shapes model: judge, vae, clip or unet.

  python -m launch.train --config=configs/train_shapes_vae.py \
    --workdir=runs/vae --model=runs/shapes
"""

import functools
import pathlib

from absl import flags as absl_flags
from unlearning_jax.launch import flags

from unlearning_jax import extensions
from unlearning_jax.experiments import common

_TRAINING = extensions.world("shapes", "training_run")
_CONFIG = flags.config()
_WORKDIR = flags.workdir()
_MODEL = absl_flags.DEFINE_string(
  "model", None, "Folder of the model being built.", required=True
)


def main(_):
  """Flags to settings to the run."""
  settings = flags.settings(_TRAINING.Settings, _CONFIG.value)
  opener = functools.partial(
    common.workdir, _WORKDIR.value, _CONFIG.value, _TRAINING.Settings
  )
  _TRAINING.run(settings, opener, pathlib.Path(_MODEL.value))


if __name__ == "__main__":
  flags.run(main, lambda: _TRAINING.STAGES)
