"""Puts a trained Shapes model into the package, measured, with its card.

  python -m launch.ship_shapes --model=runs/shapes --runs=runs \
    --output=unlearning_jax/shapes/assets

`--runs` holds the four training runs (judge, vae, clip, unet). What is
measured is what ships: the weights in float16, read back from the output.
Two CPU cores: about five minutes.
"""

import pathlib

from absl.flags import DEFINE_integer, DEFINE_string

from . import flags

_MODEL = DEFINE_string(
  "model", None, "Folder that training filled.", required=True
)
_RUNS = DEFINE_string(
  "runs", None, "Folder of the training runs.", required=True
)
_OUTPUT = DEFINE_string(
  "output", None, "The package's assets folder.", required=True
)
_PROMPTS = DEFINE_integer("prompts", 2_000, "Held-out prompts to draw.")


def main(_):
  """Flags to folders."""
  from unlearning_jax import extensions

  folders = map(pathlib.Path, (_MODEL.value, _RUNS.value, _OUTPUT.value))
  extensions.world("shapes", "shipping").ship(*folders, _PROMPTS.value)


if __name__ == "__main__":
  flags.run(main)
