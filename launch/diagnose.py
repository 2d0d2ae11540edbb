"""Asks an unlearned model itself what images of the concept show.

  python -m launch.diagnose --edit=runs/uce --workdir=runs/diagnosis \
    --config=configs/diagnose.py:tiny,task=object,name=star

The original model draws the concept's prompts; then the original and the victim
denoise these images, each row's under its own prompt, under a neutral one, and
under a caption of every class (Diffusion Classifier). A victim whose gap
between neutral and own prompt is near the original's has not lost the concept.
"""

import functools

from absl.flags import DEFINE_string

from . import flags

_CONFIG = flags.config()
_WORKDIR = flags.workdir()
_EDIT = DEFINE_string("edit", "", "Edit file, or erase run's folder.")


def main(_: list[str]):
  """Flags to settings to the experiment."""
  from unlearning_jax.experiments import common, diagnose

  config, folder = _CONFIG.value, _WORKDIR.value
  given = flags.settings(diagnose.Settings, config)
  opened = functools.partial(common.workdir, folder, config, diagnose.Settings)
  for key, value in diagnose.run(given, opened, edit=_EDIT.value).items():
    print(f"{key}: {value}")


def listed() -> list[str]:
  """The attacks."""
  from unlearning_jax import attacks

  return attacks.listing()


if __name__ == "__main__":
  flags.run(main, listed)
