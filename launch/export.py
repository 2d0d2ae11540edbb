"""Writes an edit for other people's tools.

  python -m launch.export --edit=runs/uce/edit.safetensors --model=shapes \
    --format=lora --output=uce_lora.safetensors

Formats: lora (diffusers, PEFT), kohya (ComfyUI, A1111), delta (the edited
projections alone), unet (a state dict, .pt or .safetensors), folder (a
diffusers folder), context_map (this package's own). The model must be the one
that the edit was made from.

Seconds; `unet` and `folder` take as long as writing the model does.
"""

from absl import app, flags, logging

from unlearning_jax import exports as export
from unlearning_jax import shapes, stable_diffusion
from unlearning_jax.convert import output
from unlearning_jax.edits import load_edit

_EDIT = flags.DEFINE_string("edit", None, "edit.safetensors.", required=True)
_MODEL = flags.DEFINE_string(
  "model",
  None,
  "Its base: shapes, a folder or a hub id.",
  required=True,
)
_FORMAT = flags.DEFINE_enum(
  "format", None, list(export.FORMATS), "What to write.", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "Where to.", required=True)
_DTYPE = flags.DEFINE_enum(
  "dtype", "float32", list(output.DTYPES), "In which to write it."
)
_RANK = flags.DEFINE_integer(
  "rank", None, "Of a LoRA, at most; by default as many as it takes."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the output.")


def main(argv: list[str]) -> None:
  """Checks the flags, reads edit and base, writes."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  options = {
    "dtype": _DTYPE.value,
    "rank": _RANK.value,
    "overwrite": _OVERWRITE.value,
  }
  export.check_export(_OUTPUT.value, _FORMAT.value, **options)
  edit = load_edit(_EDIT.value)
  path = _MODEL.value
  sd, params = stable_diffusion.load(
    shapes.model_folder() if path == "shapes" else path
  )
  facts = export.export(
    _OUTPUT.value, _FORMAT.value, sd, edit, params, **options
  )
  told = ", ".join(f"{name} {value:.4g}" for name, value in facts.items())
  logging.info("%s edit written to %s: %s", edit.method, _OUTPUT.value, told)


if __name__ == "__main__":
  app.run(main)
