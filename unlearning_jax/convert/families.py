"""Says what a weights file is, from the names and shapes of its tensors.

One table knows the kinds. The loader refuses by it what cannot be read, every
error of a loader ends with what the file is, and `inspect` shows it. So a user
of SDXL reads that the family is not supported, and not that a key is unknown.
"""

import contextlib
import os
import pathlib
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from unlearning_jax import durable
from unlearning_jax.convert import names, reader
from unlearning_jax.convert.output import MARK

EDIT_FORMAT = "unlearning_jax edit 1"
FINGERPRINT = "base_fingerprint"
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


class Kind(NamedTuple):
  """What a file is.

  Attributes:
    name: a short word for the kind.
    text: the kind in words, with an article.
    use: what to do with such a file; of a kind that is not read, what instead;
      to be `filled`.
    read: whether it can be laid over a base, or is whole.
    tell: the tensor's name that shows it.
  """

  name: str
  text: str
  use: str = ""
  read: bool = True
  tell: str = ""


# Commands as they are typed, see `filled`.
TO_FOLDER = "unlearning-jax convert --input=FILE --base=BASE --output=folder"
TO_EDIT = (
  "unlearning-jax convert --input=FILE --base=BASE --format=edit "
  "--erased=PHRASE --output=edit.safetensors"
)
OVER = f"lay it over its base: {TO_FOLDER}"
_AS_EDIT = (
  f"{OVER}; to attack it: --config.victim=FILE; to tune it too, as an edit: "
  f"{TO_EDIT}"
)
_OTHER = "not supported; give the UNet, the text encoder or the whole model"


def _of(name: str, pattern: str, text: str, use: str, read: bool = True):
  return re.compile(pattern), Kind(name, text, use, read)


# In order: the first row that matches some tensor's name decides. FLUX stands
# before SD 3, all of whose names in diffusers' layout it has too.
_TABLE = (
  _of(_FLUX,
      r"^(model\.diffusion_model\.|transformer\.)?"
      r"(double_blocks|single_blocks|single_transformer_blocks)\.\d"
      r"|^lora_(unet|transformer)_(double|single|single_transformer)_blocks_\d",
      _FLUX, _REMEDY, False),
  _of(_SD3,
      r"^(model\.diffusion_model\.)?joint_blocks\.\d"
      r"|^(transformer\.)?transformer_blocks\.\d+\.attn\.add_[qkv]_proj\."
      r"|^lora_(unet_joint_blocks|transformer_transformer_blocks)_\d",
      _SD3, _REMEDY, False),
  _of(_XL,
      r"^conditioner\.embedders\.|^(unet\.)?add_embedding\.linear_1\."
      r"|^lora_te2_|^text_encoder_2\."
      # Its transformers have several blocks.
      r"|^lora_unet_.*_transformer_blocks_[1-9]",
      _XL, _REMEDY, False),
  _of("optimizer", r"(^|\.)(exp_avg(_sq)?|momentum_buffer)$",
      "the state of an optimizer",
      "the weights are a file beside it, or its entry `model`", False),
  _of("word", r"^(string_to_param|string_to_token)\.|^emb_params$|^clip_[lg]$",
      "a learnt word (textual inversion)",
      "it holds no weight: a word is found and drawn with by the attacks "
      "concept_inversion and new_word, --config.new_words=<folder of the run>",
      False),
  _of("adapter", r"(^|\.)attentions\.\d+\.(down|up)\.(weight|bias)$",
      "an adapter with an activation (Receler's erasers)",
      "it is not linear, so that no weight can hold it: not supported", False),
  _of("adapter", r"^(unet|text_encoder):\d+:(up|down)$",
      "a LoRA of lora_diffusion, whose layers have numbers in place of names",
      "not supported; merge it with that tool, and give the UNet", False),
  _of("controlnet",
      r"(^|\.)(control_model|controlnet_\w+|input_hint_block|zero_convs)\."
      r"|^lora_controlnet$",
      "a ControlNet", _OTHER, False),
  _of("ip_adapter", r"^(ip_adapter|image_proj)\.|\.to_[kv]_ip\.",
      "an IP-Adapter", _OTHER, False),
  _of("motion", r"(^|\.)motion_modules\.", "a motion module (AnimateDiff)",
      _OTHER, False),
  _of("t2i_adapter", r"^(adapter\.)?body\.\d+\.", "a T2I-Adapter", _OTHER,
      False),
  _of("tiny_vae",
      r"^(encoder|decoder)\.layers\.\d+\.(conv\.\d+\.)?weight$"
      r"|^\d+\.conv\.\d+\.weight$",
      "a tiny VAE (TAESD)",
      "not supported; images are decoded by the whole VAE", False),
  _of("checker", r"(^|\.)(special_care|concept)_embeds(_weights)?$",
      "a safety checker", _OTHER, False),
  _of("quantized", r"\.(absmax|quant_map|SCB|qweight|qzeros)$",
      "a model with quantized weights",
      "not supported; give the weights that it was made from", False),
  _of("adapter", r"\.(oft_(blocks|diag|r)|oft_R|boft_[Rs]|vera_lambda_[bd]"
      r"|[ab][12]\.weight)$",
      "an adapter of a kind that is not read (OFT, BOFT, VeRA or GLoRA)",
      "not supported; merge it where it was trained, and give the UNet", False),
  _of("loha", r"\.hada_w1_[ab]$", "a LoHa", _AS_EDIT),
  _of("lokr", r"\.lokr_w[12](_[ab])?$", "a LoKr", _AS_EDIT),
  _of("ia3", r"\.(on_input|ia3_l)$", "an (IA)^3", _AS_EDIT),
  _of("lora",
      r"\.lora(_linear_layer)?[._](down|up|A|B)\b|_lora\.(down|up)\.", "a LoRA",
      _AS_EDIT),
  _of("difference", r"\.(diff|diff_b)$",
      "whole differences from a base", _AS_EDIT),
  _of("custom_diffusion", r"\.processor\.to_\w+_custom_diffusion\.",
      "keys and values of Custom Diffusion, in diffusers' layout", _AS_EDIT),
  _of("single_file", r"^cond_stage_model\.",
      "a single file in the original layout",
      f"make a folder of it: {TO_FOLDER}"),
  _of("unet", r"^(model\.)?(diffusion_model\.)?(input|middle|output)_blocks?\.",
      "a UNet in the original layout", _AS_EDIT),
  _of("unet",
      r"^(model\.)?(unet\.)?(down_blocks|mid_block|up_blocks|time_embedding"
      r"|conv_in)\.",
      "a UNet in diffusers' layout", _AS_EDIT),
  _of("vae", r"^(first_stage_model\.|vae\.)?(encoder|decoder)\."
      r"(down|up|mid|conv_|norm_)",
      "a VAE", OVER),
  _of("text_encoder",
      r"(^|\.)(text_model\.|encoder\.layers\.|transformer\.resblocks\.)",
      "a text encoder", _AS_EDIT),
)  # fmt: skip
_TOOLS = (
  (r"^base_model\.model\.", "PEFT"),
  (r"^(diffusion_model|text_encoders)\.", "ComfyUI"),
  (r"^lycoris_", "LyCORIS"),
  (r"^lora_(unet|te|te1)_", "kohya (A1111, ComfyUI)"),
  (r"\.processor\.", "diffusers before 0.17"),
  (r"^(unet|text_encoder)\.", "diffusers"),
)
# A whole UNet has it.
FIRST = re.compile(r"(^|\.)(conv_in|input_blocks\.0\.0)\.weight$")
_ADAPTERS = ("lora", "loha", "lokr", "ia3", "difference")


def recognize(
  state: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> Kind:
  """What a file with these tensors is.

  Args:
    state: tensors or headers by their names in the file.
    metadata: the text in the file's header.
  """
  metadata = metadata or {}
  if metadata.get("format") == EDIT_FORMAT:
    return Kind(
      "edit", "an edit of this package",
      "--edit=FILE takes it; for other tools: unlearning-jax export "
      "--edit=FILE --model=BASE --format=folder --output=folder", False,
    )  # fmt: skip
  state = {names.plain(key): value for key, value in state.items()}
  for pattern, kind in _TABLE:
    tell = next(filter(pattern.search, state), None)
    if tell is not None:
      return _detailed(kind._replace(tell=tell), state, metadata)
  # diffusers keeps a word's vector under the word itself.
  if state and all(map(_is_word, state, state.values())):
    word = next(kind for _, kind in _TABLE if kind.name == "word")
    return word._replace(tell=next(iter(state)))
  return Kind(
    "unknown", "of no kind that is known here",
    f"its tensors are {', '.join(list(state)[:3])}; {_REMEDY}", False,
  )  # fmt: skip


def kinds() -> list[Kind]:
  """Every kind of file that is recognized, in the order of the table."""
  found = {kind.name: kind for _, kind in _TABLE}
  return list(found.values())


def filled(text: str, path: str | os.PathLike[str], base: str = "") -> str:
  """Text with the commands of a file as a shell reads them.

  Args:
    text: has FILE, BASE and PHRASE where these belong.
    base: the name of its base; "" where nobody knows it.
  """
  values = {
    "FILE": os.fspath(path),
    "BASE": base or "<its base>",
    "PHRASE": "<what it erases>",
  }
  return re.sub(
    r"\b(FILE|BASE|PHRASE)\b", lambda found: shlex.quote(values[found[0]]), text
  )


def _is_word(name: str, value: Any) -> bool:
  """Whether a tensor may be a word's vectors: a few rows as wide as a text."""
  few = len(value.shape) in (1, 2) and value.shape[:-1] < (100,)
  return few and value.shape[-1] >= 64 and "." not in name


def _detailed(
  kind: Kind, state: Mapping[str, Any], metadata: Mapping[str, str]
) -> Kind:
  """The kind with what only some files of it are."""
  if FINGERPRINT in metadata:
    text = "a delta of this package, over the base that its header names"
    return kind._replace(name="delta", text=text)
  if kind.name in _ADAPTERS:
    for pattern, tool in _TOOLS:
      if any(re.search(pattern, name) for name in state):
        dora = any("dora_scale" in n or "magnitude" in n for n in state)
        text = kind.text + (" with DoRA" if dora else "")
        return kind._replace(text=f"{text}, with the names of {tool}")
  if kind.name == "unet" and not any(map(FIRST.search, state)):
    return kind._replace(text=kind.text.replace("a UNet", "a part of a UNet"))
  if kind.name == "single_file" and not any(
    name.startswith("model.diffusion_model.") for name in state
  ):
    return kind._replace(
      name="text_encoder", text="a text encoder in the original layout",
      use=_AS_EDIT,
    )  # fmt: skip
  return kind


@contextlib.contextmanager
def explaining(source: str, kind: Kind) -> Iterator[None]:
  """Ends every error about a file with what the file is."""
  try:
    yield
  except ValueError as error:
    raise ValueError(
      f"{error}\n  {os.path.basename(source)} is {kind.text}"
    ) from error


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
    value = durable.read_json(file).get(key)
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


def check(kind: Kind, source: str):
  """Refuses a kind that is not read; `source` names the file in errors.

  Raises:
    ValueError: naming the kind and what to do.
  """
  if kind.read or kind.name == "unknown":
    return
  if kind.name in (_XL, _SD3, _FLUX):
    raise ValueError(f"{source}: {kind.tell!r} is of {kind.text}; {kind.use}")
  tell = f" (it has {kind.tell!r})" if kind.tell else ""
  use = filled(kind.use, source)
  raise ValueError(f"{source}: is {kind.text}{tell}; {use}")


def of_file(path: str | os.PathLike[str]) -> Kind:
  """What a file is; reads its header only, where the format has one."""
  return recognize(reader.read_headers(path), reader.read_metadata(path))


def _of_class(name: Any) -> str | None:
  for start, family in _CLASSES.items():
    if str(name).removeprefix("Flax").startswith(start):
      return family
  return None
