"""Names the model family of weights that are not Stable Diffusion 1.x or 2.x.

Without this a user of SDXL, SD 3 or FLUX would read that one key is unknown,
and not that the whole family is not supported.
"""

import os
import pathlib
import re
from collections.abc import Iterable
from typing import Any

from unlearning_jax.convert import reader
from unlearning_jax.convert.output import MARK

_SUPPORTED = "Stable Diffusion 1.x and 2.x"
_REMEDY = (
  f"supported is {_SUPPORTED}: a diffusers folder, a hub id, a single file, "
  "or a UNet, text encoder, delta or LoRA over one of these"
)
_XL, _SD3, _FLUX = "Stable Diffusion XL", "Stable Diffusion 3", "FLUX"
# How diffusers' class of a pipeline or transformer begins -> family.
_CLASSES = {
  "StableDiffusionXL": _XL,
  "StableDiffusion3": _SD3,
  "SD3": _SD3,
  "Flux": _FLUX,
}
# Names that only this family's files have: original layouts, diffusers, LoRAs.
# FLUX stands before SD 3, all of whose names in diffusers' layout it has too.
_KEYS = {
  _FLUX: re.compile(
    r"(model\.diffusion_model\.|transformer\.)?"
    r"(double_blocks|single_blocks|single_transformer_blocks)\.\d"
    r"|lora_(unet|transformer)_(double|single|single_transformer)_blocks_\d"
  ),
  _SD3: re.compile(
    r"(model\.diffusion_model\.)?joint_blocks\.\d"
    r"|(transformer\.)?transformer_blocks\.\d+\.attn\.add_[qkv]_proj\."
    r"|lora_(unet_joint_blocks|transformer_transformer_blocks)_\d"
  ),
  _XL: re.compile(
    r"conditioner\.embedders\.|(unet\.)?add_embedding\.linear_1\."
    r"|lora_te2_|text_encoder_2\."
    # Its transformers have several blocks.
    r"|lora_unet_.*_transformer_blocks_[1-9]"
  ),
}


def check_folder(path: pathlib.Path):
  """Refuses a folder of another family; one that names no family passes.

  Args:
    path: a pipeline's folder, or that of its network alone.

  Raises:
    ValueError: naming the family and what is supported.
  """
  for file, key in (
    (path / MARK, "_class_name"),
    (path / "transformer" / "config.json", "_class_name"),
    (path / "config.json", "_class_name"),
    (path / "unet" / "config.json", "addition_embed_type"),
    (path / "config.json", "addition_embed_type"),
  ):
    if not file.is_file():
      continue
    value = reader.read_json(file).get(key)
    if key == "addition_embed_type":
      family = _XL if value == "text_time" else None
    else:
      family = _of_class(value)
    if family:
      raise ValueError(f"{file}: {key}={value!r} is {family}; {_REMEDY}")
  if (path / "transformer").is_dir() and not (path / "unet").is_dir():
    raise ValueError(
      f"{path}: has a transformer/ in place of a unet/, so it is a diffusion "
      f"transformer; {_REMEDY}"
    )


def check_names(names: Iterable[str], source: str):
  """Refuses tensors of another family; `source` names their file in errors.

  Raises:
    ValueError: naming the family, the tensor, and what is supported.
  """
  names = list(names)
  for family, pattern in _KEYS.items():
    for name in names:
      if pattern.match(name):
        raise ValueError(f"{source}: {name!r} is of {family}; {_REMEDY}")


def check_file(path: str | os.PathLike[str]):
  """`check_names` of a `.safetensors` file; reads its header only.

  A file of another format passes. So does a damaged one: its reader reports
  what is wrong.
  """
  try:
    names = reader.read_names(path)
  except ValueError:
    return
  check_names(names, os.fspath(path))


def _of_class(name: Any) -> str | None:
  for start, family in _CLASSES.items():
    if str(name).removeprefix("Flax").startswith(start):
      return family
  return None
