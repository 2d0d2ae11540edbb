"""Writes an edit for other tools.

  python -m launch.export --edit=runs/uce/edit.safetensors --model=shapes \
    --format=lora --output=uce_lora.safetensors

Formats: lora (diffusers, PEFT), kohya (ComfyUI, A1111), delta (only what is
edited), unet and text_encoder (state dicts), folder (diffusers), single_file
(A1111, ComfyUI), context_map (ours). The model must be the edit's base.
"""

from absl import flags as absl_flags

from . import flags

_EDIT = absl_flags.DEFINE_string(
  "edit", None, "An edit, or the folder of its run.", required=True
)
_MODEL = absl_flags.DEFINE_string(
  "model", None, "The base: shapes, a folder or a hub id.", required=True
)
_KINDS = "<lora|kohya|delta|unet|text_encoder|folder|single_file|context_map>."
_FORMAT = absl_flags.DEFINE_string("format", None, _KINDS, required=True)
_OUTPUT = absl_flags.DEFINE_string(
  "output", None, "The file or folder.", required=True
)
_DTYPE = absl_flags.DEFINE_string(
  "dtype", "float32", "float32, float16 or bfloat16."
)
_RANK = absl_flags.DEFINE_integer(
  "rank", None, "A LoRA's rank, at most; by default as high as it needs."
)
_OVERWRITE = absl_flags.DEFINE_bool("overwrite", False, "Replace the output.")


def main(_):
  """Checks the flags, reads edit and base, writes."""
  from unlearning_jax import exports, model
  from unlearning_jax.experiments import common

  options = {"dtype": _DTYPE.value, "rank": _RANK.value}
  options["overwrite"] = _OVERWRITE.value
  exports.check_export(_OUTPUT.value, _FORMAT.value, **options)
  edit = common.read_edit(_EDIT.value, "--edit")
  made = model.load(_MODEL.value).with_edit(edit)
  facts = made.save(_OUTPUT.value, _FORMAT.value, **options)
  said = ", ".join(f"{name} {value:.4g}" for name, value in facts.items())
  print(f"{edit.method} edit written to {_OUTPUT.value}: {said}")


def listed() -> list[str]:
  """The formats."""
  from unlearning_jax import exports

  return list(exports.FORMATS)


if __name__ == "__main__":
  flags.run(main, listed)
