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

from absl.flags import DEFINE_string

from . import flags

_CONFIG = flags.config()
_WORKDIR = flags.workdir()
_EDIT = DEFINE_string("edit", None, "An edit, or an erase run's folder.")


def main(_):
  """Flags to settings to the run."""
  from unlearning_jax.experiments import common, finetune

  settings = flags.settings(finetune.Settings, _CONFIG.value)
  model = common.load_model(settings)
  if _EDIT.value:
    model = model.with_edit(common.read_edit(_EDIT.value, "--edit"))
  opener = functools.partial(
    common.workdir, _WORKDIR.value, _CONFIG.value, finetune.Settings
  )
  finetune.run(settings, opener, model)


def listed() -> list[str]:
  """What may train, what defends an erasure, where images come from."""
  from unlearning_jax.experiments import finetune

  return finetune.listed()


if __name__ == "__main__":
  flags.run(main, listed)
