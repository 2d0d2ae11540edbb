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

Takes as long as reading and writing the files does. Stable Diffusion 1 in
float32, folder to folder, peaks at 7 GiB of memory; a delta or an edit holds
two models.
"""

import pathlib

from absl import app, flags, logging

from unlearning_jax import convert, shapes
from unlearning_jax.concepts import DEFAULT_ANCHORS, make_concepts
from unlearning_jax.convert import output
from unlearning_jax.edits import Edit, edit_between, save_edit

_INPUT = flags.DEFINE_string(
  "input", None, "Folder, file or hub id (owner/name).", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "What to write.", required=True)
_BASE = flags.DEFINE_string(
  "base",
  None,
  "What the input is a part or an edit of: shapes, a folder or a hub id.",
)
_FORMAT = flags.DEFINE_enum(
  "format", "folder", ["folder", "unet", "delta", "edit"], "What to write."
)
_ERASED = flags.DEFINE_multi_string(
  "erased", [], "Of an edit: a phrase that was erased; may be repeated."
)
_TASK = flags.DEFINE_enum(
  "task", "object", list(DEFAULT_ANCHORS), "Of an edit: what kind these are."
)
_DTYPE = flags.DEFINE_enum(
  "dtype", "float32", list(output.DTYPES), "In which to write it."
)
_VARIANT = flags.DEFINE_string("variant", None, "Weights to read, as fp16.")
_EMA = flags.DEFINE_bool(
  "ema", None, "Of a single file: averaged or trained UNet weights."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the output.")


def check_flags() -> None:
  """Finds what would fail in the end, before gigabytes are read.

  Raises:
    ValueError: naming the flag.
  """
  single = pathlib.Path(_INPUT.value).is_file()
  if _FORMAT.value in ("delta", "edit") and _BASE.value is None:
    raise ValueError(
      f"--format={_FORMAT.value} needs --base, the model before the edit"
    )
  if (_FORMAT.value == "edit") != bool(_ERASED.value):
    raise ValueError(
      f"--erased={_ERASED.value}: --format=edit, and no other, says what was "
      f"erased; got --format={_FORMAT.value}"
    )
  if _FORMAT.value == "edit":
    make_concepts(_ERASED.value, task=_TASK.value)
    if _DTYPE.value != "float32":
      raise ValueError(f"--dtype={_DTYPE.value}: an edit is of float32 weights")
  if _FORMAT.value == "folder" and single and _BASE.value is None:
    raise ValueError(
      f"--input={_INPUT.value} is a file, so it has no tokenizer; --base names "
      "the folder to take it from"
    )
  if _FORMAT.value != "folder" and not _OUTPUT.value.endswith(".safetensors"):
    raise ValueError(
      f"--output={_OUTPUT.value}: --format={_FORMAT.value} writes a file that "
      "ends in .safetensors"
    )
  output.check_output(_OUTPUT.value, _OVERWRITE.value)


def write_edit(base: convert.ModelFiles, model: convert.ModelFiles) -> Edit:
  """Writes what the model is of the base, with what was erased."""
  edit = edit_between(
    convert.to_params(base),
    convert.to_params(model),
    method="-".join(pathlib.Path(_INPUT.value).stem.split()),
    concepts=make_concepts(_ERASED.value, task=_TASK.value),
    diagnostics={},
  )
  save_edit(edit, _OUTPUT.value)
  return edit


def main(argv: list[str]) -> None:
  """Reads, checks every key against the model, and writes."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  check_flags()
  base = _BASE.value
  if base == "shapes":
    base = shapes.model_folder()
  if _FORMAT.value in ("delta", "edit"):
    assert base is not None
    base = convert.load(base, variant=_VARIANT.value)
  model = convert.load(
    _INPUT.value, base, variant=_VARIANT.value, ema=_EMA.value
  )
  convert.to_params(model)
  options = {"dtype": _DTYPE.value, "overwrite": _OVERWRITE.value}
  if _FORMAT.value == "folder":
    convert.save_folder(_OUTPUT.value, model, **options)
  elif _FORMAT.value == "unet":
    convert.save_unet(_OUTPUT.value, model, **options)
  elif _FORMAT.value == "edit":
    assert isinstance(base, convert.ModelFiles)
    facts = write_edit(base, model).diagnostics
    logging.info(
      "%d leaves differ, by %.4g of their size",
      facts["changed_leaves"],
      facts["relative_change"],
    )
  else:
    assert isinstance(base, convert.ModelFiles)
    names = convert.save_delta(_OUTPUT.value, base, model, **options)
    logging.info("%d tensors differ, the first is %s", len(names), names[0])
  for component, state in model.states.items():
    parameters = sum(value.size for value in state.values())
    logging.info(
      "%s: %d tensors, %d parameters", component, len(state), parameters
    )
  logging.info("written to %s", _OUTPUT.value)


if __name__ == "__main__":
  app.run(main)
