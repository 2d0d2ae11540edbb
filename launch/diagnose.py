"""Asks an unlearned model what it sees in images of the concept.

  python -m launch.diagnose --edit=runs/uce --workdir=runs/diagnosis \
    --config=configs/diagnose.py:tiny,task=object,name=star

The base draws the concept's prompts. Then base and victim denoise these images:
with the row's own prompt, with an anchor prompt, and with a caption of every
class (Diffusion Classifier). The gap is how much more the anchor prompt errs
than the row's own. A victim whose gap is near the base's has not lost the
concept.
"""

import functools

from absl.flags import DEFINE_string

from . import flags

_CONFIG = flags.config()
_WORKDIR = flags.workdir()
_EDIT = DEFINE_string("edit", "", "An edit, or the folder of an erase run.")


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
