"""Attacks an unlearned model, many prompts at a time.

  python -m launch.attack --edit=runs/uce --workdir=runs/attack \
    --config=configs/attack_unlearn_diff_atk.py:tiny,task=object,name=star

Without `--edit` the model itself is attacked, or `--config.victim` if that
names another, or the UNet or text encoder of one; `--config.guidance` says what
it is kept from while it samples. `--control` names the run of a control on the
same rows. A row is recorded as it ends; a run that was killed goes on with
those left. `--list` says which attacks there are.
"""

import functools
import pathlib
from collections.abc import Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from unlearning_jax import attacks, settings, sharding
from unlearning_jax.experiments import attack, common

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", "", "The run's folder.")
_EDIT = flags.DEFINE_string("edit", "", "Edit file, or erase run's folder.")
_CONTROL = flags.DEFINE_string("control", "", "Folder of a control's run.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join other processes.")
_LIST = flags.DEFINE_bool("list", False, "Say which attacks there are.")


def main(_: Sequence[str]):
  """Flags to settings to the experiment."""
  if _LIST.value:
    print(attacks.listing())
    return
  # The progress line is what a user follows; libraries only warn.
  logging.set_verbosity(logging.WARNING)
  sharding.initialize_distributed(_DISTRIBUTED.value)
  config, folder = _CONFIG.value, _WORKDIR.value
  given = settings.build(attack.Settings, config.to_dict())
  opened = functools.partial(common.workdir, folder, config, attack.Settings)
  found = attack.run(given, opened, edit=_EDIT.value, beside=_CONTROL.value)
  print(attack.printed(found))
  print(f"report: {pathlib.Path(folder).absolute() / 'report.html'}")


if __name__ == "__main__":
  flags.register_multi_flags_validator(
    ["config", "workdir", "list"],
    lambda given: given["list"] or all((given["config"], given["workdir"])),
    "--config and --workdir are required",
  )
  app.run(main)
