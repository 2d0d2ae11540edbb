"""Converts Stable Diffusion weights between the formats people publish.

A whole model (folder, single file or hub id) into a diffusers folder:

  python -m launch.convert --input=sd-v1-4.ckpt --base=sd14 --ema \
    --output=converted

A published edit (a UNet, a text encoder, some layers, a LoRA) over its base:

  python -m launch.convert --input=esd-church.pt --base=sd14 --output=esd-church

The other way round, what an edited folder changed:

  python -m launch.convert --input=esd-church --base=sd14 --format=delta \
    --output=esd-church.safetensors

What others published, as an edit that this package tunes, attacks and draws:

  python -m launch.convert --input=esd-church.pt --base=sd14 --format=edit \
    --erased=church --output=esd-church.safetensors

Stable Diffusion 1 in float32, folder to folder, peaks at 7 GiB of memory; a
delta or an edit holds two models.
"""

from absl import flags as absl_flags

from . import flags

absl_flags.DEFINE_string("input", None, "Folder, file, hub id.", required=True)
absl_flags.DEFINE_string("output", None, "What to write.", required=True)
absl_flags.DEFINE_string("base", None, "Of a part: shapes, folder, hub id.")
absl_flags.DEFINE_string("format", "folder", "folder, unet, delta or edit.")
absl_flags.DEFINE_multi_string(
  "erased", [], "Of an edit: a phrase that was erased; may be repeated."
)
absl_flags.DEFINE_string("task", "object", "Of an edit: object, art or unsafe.")
absl_flags.DEFINE_string("dtype", "float32", "Written as: float32 or float16.")
absl_flags.DEFINE_string("variant", None, "Weights to read, as fp16.")
absl_flags.DEFINE_bool("ema", None, "Of a file: averaged or trained weights.")
absl_flags.DEFINE_bool("overwrite", False, "Replace the output.")


def main(_):
  """Checks the flags, then converts."""
  from unlearning_jax.experiments import convert

  convert.run(flags.built(convert.Settings))


if __name__ == "__main__":
  flags.run(main)
