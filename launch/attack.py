"""Attacks an unlearned model, many prompts at a time.

  python -m launch.attack --edit=runs/uce --workdir=runs/attack \
    --config=configs/attack_unlearn_diff_atk.py:tiny,task=object,name=star

Without `--edit` the model itself is the victim. `--config.victim` names another
model, or a UNet or text encoder; `--config.guidance` steers the victim's
sampling. `--control` names the run of a control on the same rows. Each row is
recorded when it ends; start a killed run again to finish the rest. `--list`
prints the attacks.
"""

import functools
import pathlib

from absl.flags import DEFINE_string

from . import flags

_CONFIG = flags.config()
_WORKDIR = flags.workdir()
_EDIT = DEFINE_string("edit", "", "An edit, or the folder of an erase run.")
_CONTROL = DEFINE_string("control", "", "The folder of a control's run.")


def main(_: list[str]):
  """Flags to settings to the experiment."""
  from unlearning_jax.experiments import attack, common

  config, folder = _CONFIG.value, _WORKDIR.value
  given = flags.settings(attack.Settings, config)
  opened = functools.partial(common.workdir, folder, config, attack.Settings)
  found = attack.run(given, opened, edit=_EDIT.value, beside=_CONTROL.value)
  print(attack.printed(found))
  print(f"report: {pathlib.Path(folder).absolute() / 'report.html'}")


def listed() -> list[str]:
  """The attacks."""
  from unlearning_jax import attacks

  return attacks.listing()


if __name__ == "__main__":
  flags.run(main, listed)
