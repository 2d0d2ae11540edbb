"""Trains one part of the Shapes model: judge, vae, clip or unet.

  python -m launch.train --config=configs/train_shapes_vae.py \
    --workdir=runs/vae --model=runs/shapes
"""

import functools
import pathlib

from absl.flags import DEFINE_string

from . import flags

_CONFIG = flags.config()
_WORKDIR = flags.workdir()
_MODEL = DEFINE_string(
  "model", None, "The folder of the model being built.", required=True
)


def main(_):
  """Flags to settings to the run."""
  from unlearning_jax import extensions
  from unlearning_jax.experiments import common

  training = extensions.world("shapes", "training_run")
  config, cls = _CONFIG.value, training.Settings
  opener = functools.partial(common.workdir, _WORKDIR.value, config, cls)
  training.run(flags.settings(cls, config), opener, pathlib.Path(_MODEL.value))


def listed() -> list[str]:
  """The configs, one for each part."""
  return [name for name in flags.shipped() if name.startswith("train_")]


if __name__ == "__main__":
  flags.run(main, listed, polled=True)
