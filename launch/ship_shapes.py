"""Puts a trained Shapes model, measured and with its card, into the package.

  python -m launch.ship_shapes --model=runs/shapes --runs=runs \
    --output=unlearning_jax/shapes/assets

`--runs` has the four training runs (judge, vae, clip, unet). The measured
weights are those that ship: float16, read back from the output. It takes about
five minutes on two CPU cores.
"""

import pathlib

from absl.flags import DEFINE_integer, DEFINE_string

from . import flags

_MODEL = DEFINE_string(
  "model", None, "The folder that training filled.", required=True
)
_RUNS = DEFINE_string(
  "runs", None, "The folder of the training runs.", required=True
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
