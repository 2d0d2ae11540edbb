"""Fine-tunes a model, erased or not, and keeps every checkpoint.

  python -m launch.finetune --edit=runs/uce --workdir=runs/tuned \
    --config=configs/finetune_full.py:tiny,without=object/star

Without `--edit` it tunes the base. Each step in `config.checkpoints` becomes
`steps/<n>.safetensors`, an edit of the base; `launch.evaluate
--edits=runs/uce,runs/tuned/steps/...` draws the curve of what comes back. Start
a killed run again with the same data: it goes on from the last of these steps,
or from the last multiple of `config.checkpoint_every` if they lie far apart.
`--list` prints what can train, the defenses of an erasure, and the sources of
images.
"""

import functools

from absl.flags import DEFINE_string

from . import flags

_CONFIG = flags.config()
_WORKDIR = flags.workdir()
_MESH = flags.mesh()
_EDIT = DEFINE_string("edit", None, "An edit, or the folder of an erase run.")


def main(_):
  """Flags to settings to the run."""
  from unlearning_jax.experiments import common, finetune

  values = flags.with_mesh(_CONFIG.value, _MESH.value)
  settings = flags.settings(finetune.Settings, values)
  model = common.load_model(settings)
  if _EDIT.value:
    model = model.with_edit(common.read_edit(_EDIT.value, "--edit"))
  opener = functools.partial(
    common.workdir, _WORKDIR.value, _CONFIG.value, finetune.Settings
  )
  kept = list(finetune.run(settings, opener, model).values())
  if common.is_first():
    given = f"{_EDIT.value}," if _EDIT.value else ""
    print(
      f"made: {', '.join(map(str, kept))}; draw with them: unlearning-jax "
      f"evaluate --edits={given}{kept[-1]}"
    )


def listed() -> list[str]:
  """What can train, the defenses, the sources of images."""
  from unlearning_jax.experiments import finetune

  return finetune.listed()


if __name__ == "__main__":
  flags.run(main, listed, polled=True)
