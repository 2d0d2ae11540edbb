"""Converts weights between the formats that people publish."""

import dataclasses
import pathlib
from collections.abc import Sequence

from absl import logging

from unlearning_jax import convert, durable, extensions
from unlearning_jax.concepts import check_choice, make_concepts
from unlearning_jax.convert import ModelFiles, output
from unlearning_jax.edits import edit_between, save_edit

# Format -> how its file may end; a folder may have any name.
FORMATS: dict[str, tuple[str, ...]] = {
  "folder": (),
  "single_file": (".safetensors", ".ckpt"),
  "unet": (".safetensors", ".pt"),
  "text_encoder": (".safetensors", ".pt"),
  "delta": (".safetensors",),
  "edit": (".safetensors",),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """What is read and written; refuses what would fail only at the end.

  Attributes:
    input: a folder, a file or a hub id.
    output: a folder for `format="folder"`, else a file.
    base: the model that the input is a part or an edit of: a world's name, a
      folder or a hub id; None where the input is whole.
    format: one of `FORMATS`.
    erased: for `format="edit"`, the phrases that were erased.
    task: for `format="edit"`, the task of these phrases.
    dtype: the type of the written weights, a key of `convert.output.DTYPES`.
    variant: the variant of the weights to read, such as fp16.
    ema: for a single file, True reads averaged UNet weights and False trained
      ones; None takes whichever the file has.
    overwrite: True replaces an output that exists, but no folder with a file
      that no conversion writes.

  Raises:
    ValueError: naming the flag.
  """

  input: str
  output: str
  base: str | None = None
  format: str = "folder"
  erased: Sequence[str] = ()
  task: str = "object"
  dtype: str = "float32"
  variant: str | None = None
  ema: bool | None = None
  overwrite: bool = False

  def __post_init__(self):
    check_choice("--format", self.format, FORMATS)
    if self.format in ("delta", "edit") and self.base is None:
      raise ValueError(
        f"--format={self.format} needs --base, the model before the edit"
      )
    if (self.format == "edit") != bool(self.erased):
      raise ValueError(
        f"--erased={list(self.erased)}: --format=edit needs it and no other "
        f"format takes it; got --format={self.format}"
      )
    if self.format == "edit":
      make_concepts(self.erased, task=self.task)
      if self.dtype != "float32":
        raise ValueError(f"--dtype={self.dtype}: an edit holds float32 weights")
    single = pathlib.Path(self.input).is_file()
    if self.format == "folder" and single and self.base is None:
      raise ValueError(
        f"--input={self.input} is a file, so it has no tokenizer; --base names "
        "the folder to take it from"
      )
    endings = FORMATS[self.format]
    if endings and not self.output.endswith(endings):
      raise ValueError(
        f"--output={self.output}: --format={self.format} writes a file that "
        f"ends in {' or '.join(endings)}"
      )
    folder = self.format == "folder"
    output.check_output(self.output, self.overwrite, folder=folder)


def run(given: Settings):
  """Reads the input, checks every key against the model, and writes.

  Raises:
    ValueError: the input or its base cannot be read whole, or do not fit.
  """
  base = given.base
  if base in extensions.worlds():
    base = extensions.world(base).model_folder()
  if given.format in ("delta", "edit") and base is not None:
    base = convert.load(base, variant=given.variant)
  model = convert.load(given.input, base, variant=given.variant, ema=given.ema)
  if isinstance(base, ModelFiles):
    model = convert.without_new_words(model, base)
  with durable.explaining(given.input, "its parts make no model"):
    convert.to_params(model)
  known = base if isinstance(base, ModelFiles) else None
  _write(given, known or model, model)
  if given.dtype != "float32":
    lost = output.rounding(
      model.states, given.dtype, known.states if known else None
    )
    logging.info(
      "%s loses %.3g of the %s", given.dtype, lost,
      "change from the base" if known else "weights",
    )  # fmt: skip
  for component, state in model.states.items():
    parameters = sum(value.size for value in state.values())
    logging.info(
      "%s: %d tensors, %d parameters", component, len(state), parameters
    )
  logging.info("written to %s", given.output)


def _write(given: Settings, base: ModelFiles, model: ModelFiles):
  dtype, overwrite = given.dtype, given.overwrite
  if given.format == "folder":
    convert.save_folder(given.output, model, dtype=dtype, overwrite=overwrite)
  elif given.format == "single_file":
    convert.save_single_file(
      given.output, model, dtype=dtype, overwrite=overwrite
    )
  elif given.format in ("unet", "text_encoder"):
    convert.save_part(
      given.output, model, given.format, dtype=dtype, overwrite=overwrite
    )
  elif given.format == "delta":
    names = convert.save_delta(
      given.output, base, model, dtype=dtype, overwrite=overwrite
    )
    logging.info("%d tensors differ, the first is %s", len(names), names[0])
  else:
    edit = edit_between(
      convert.to_params(base),
      convert.to_params(model),
      method="-".join(pathlib.Path(given.input).stem.split()),
      concepts=make_concepts(given.erased, task=given.task),
      diagnostics={},
    )
    save_edit(edit, given.output)
    logging.info(
      "%d leaves differ, by %.4g of their size",
      edit.diagnostics["changed_leaves"],
      edit.diagnostics["relative_change"],
    )
