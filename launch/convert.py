"""Converts Stable Diffusion weights between the formats people publish.

A whole model (folder, single file or hub id) into a diffusers folder:

  python -m launch.convert --input=sd-v1-4.ckpt --base=sd14 --ema \
    --output=converted

A published edit (a UNet, a text encoder, some layers, a LoRA) with its base:

  python -m launch.convert --input=esd-church.pt --base=sd14 --output=esd-church

Back again: one file for A1111 and ComfyUI, or what an edited folder changed:

  python -m launch.convert --input=esd-church --format=single_file \
    --output=esd-church.safetensors

A published edit as this package's own, to fine-tune, attack and draw:

  python -m launch.convert --input=esd-church.pt --base=sd14 --format=edit \
    --erased=church --output=esd-church.safetensors

Stable Diffusion 1 in float32 needs 7 GiB; a delta or an edit, two models.
"""

from absl.flags import DEFINE_bool, DEFINE_multi_string, DEFINE_string

from . import flags

DEFINE_string("input", None, "A folder, file or hub id.", required=True)
DEFINE_string("output", None, "The file or folder.", required=True)
DEFINE_string("base", None, "A part's base: shapes, folder, hub id.")
DEFINE_string(
  "format", "folder", "<folder|single_file|unet|text_encoder|delta|edit>."
)
DEFINE_multi_string("erased", [], "For an edit: a phrase.")
DEFINE_string("task", "object", "For an edit: object, art, unsafe.")
DEFINE_string("dtype", "float32", "Or float16, bfloat16.")
DEFINE_string("variant", None, "The weights to read, as fp16.")
DEFINE_bool("ema", None, "Averaged weights; --noema: trained.")
DEFINE_bool("overwrite", False, "Replace the output.")


def main(_):
  """Checks the flags, then converts."""
  from unlearning_jax.experiments import convert

  convert.run(flags.built(convert.Settings))


def listed() -> list[str]:
  """The formats."""
  from unlearning_jax.experiments import convert

  return list(convert.FORMATS)


if __name__ == "__main__":
  flags.run(main, listed)
