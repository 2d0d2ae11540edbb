"""Asks an unlearned model itself what images of the concept show.

  python -m launch.diagnose --edit=runs/uce --workdir=runs/diagnosis \
    --config=configs/diagnose.py:tiny,task=object,name=star

The original model draws the concept's prompts; then the original and the victim
denoise these images, each row's under its own prompt, under a neutral one, and
under a caption of every class (Diffusion Classifier). A victim whose gap
between neutral and own prompt is near the original's has not lost the concept.
"""

import functools
from collections.abc import Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from unlearning_jax import attacks, settings
from unlearning_jax.experiments import common, diagnose

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", "", "The run's folder.")
_EDIT = flags.DEFINE_string("edit", "", "Edit file, or erase run's folder.")
_LIST = flags.DEFINE_bool("list", False, "Say which attacks there are.")


def main(_: Sequence[str]):
  """Flags to settings to the experiment."""
  if _LIST.value:
    print(attacks.listing())
    return
  logging.set_verbosity(logging.WARNING)
  config, folder = _CONFIG.value, _WORKDIR.value
  given = settings.build(diagnose.Settings, config.to_dict())
  opened = functools.partial(common.workdir, folder, config, diagnose.Settings)
  for key, value in diagnose.run(given, opened, edit=_EDIT.value).items():
    print(f"{key}: {value}")


if __name__ == "__main__":
  flags.register_multi_flags_validator(
    ["config", "workdir", "list"],
    lambda given: given["list"] or all((given["config"], given["workdir"])),
    "--config and --workdir are required",
  )
  app.run(main)
