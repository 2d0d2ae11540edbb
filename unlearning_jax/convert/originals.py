"""The single-file layout, written: from diffusers names to the original ones.

`compvis` reads the layout; its tables, turned round, write it. All counts come
from the names themselves.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from unlearning_jax.convert import compvis
from unlearning_jax.convert.names import State, canonical

_MODULES, _RESNET, _VAE_MODULES, _VAE_PARTS, _OPEN_CLIP, _OPEN_CLIP_PARTS = (
  {new: old for old, new in table.items()}
  for table in (
    compvis.MODULES, compvis.RESNET, compvis.VAE_MODULES, compvis.VAE_PARTS,
    compvis.OPEN_CLIP_NAMES, compvis.OPEN_CLIP_PARTS,
  )
)  # fmt: skip
# In Stable Diffusion 2, whose text encoder is an open_clip.
_OPEN_CLIP_WIDTH = 1024


def unet_names(names: Iterable[str]) -> dict[str, str]:
  """{diffusers name: original name without its prefix} of a UNet's tensors."""
  names = list(names)
  layers = 1 + _last(names, r"down_blocks\.\d+\.resnets\.(\d+)")
  with_attention = {
    match[0]
    for name in names
    if (match := re.match(r"up_blocks\.\d+\.att", name))
  }

  def original(name: str) -> str:
    module, rest = compvis.longest(name, _MODULES)
    if module is None:
      match = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)$", name)
      if match is None:
        return name
      side, level, kind, layer, rest = match.groups()
      # conv_in is input block 0 and belongs to no level.
      index = int(level) * (layers + 1) + int(layer) + (side == "down")
      slot = {"resnets": 0, "attentions": 1}.get(kind, 0)
      if kind in ("downsamplers", "upsamplers"):
        index += layers
        rest = rest.replace("conv.", "op.") if side == "down" else rest
        slot = 0 if side == "down" else 1
        slot += f"up_blocks.{level}.att" in with_attention and side == "up"
      module = (
        f"{'input' if side == 'down' else 'output'}_blocks.{index}.{slot}"
      )
      resnet = kind == "resnets"
    else:
      resnet = module in ("middle_block.0", "middle_block.2")
    if resnet:
      part, leaf = compvis.longest(rest, _RESNET)
      rest = f"{part}.{leaf}" if part else rest
    return f"{module}.{rest}"

  return {name: original(name) for name in names}


def vae_names(names: Iterable[str]) -> dict[str, str]:
  """{diffusers name: original name without its prefix} of a VAE's tensors."""
  names = list(names)
  levels = 1 + _last(names, r"decoder\.up_blocks\.(\d+)")

  def original(name: str) -> str:
    half, _, key = name.partition(".")
    module, rest = compvis.longest(key, _VAE_MODULES)
    if module is None:
      match = re.match(r"(down|up)_blocks\.(\d+)\.(.+)$", key)
      if match is None:
        return name
      side, level, rest = match[1], int(match[2]), match[3]
      # This layout counts the decoder's levels from the image down.
      module = f"{side}.{level if side == 'down' else levels - 1 - level}"
      rest = re.sub(r"^resnets\.", "block.", rest)
      rest = re.sub(r"^(down|up)samplers\.0\.", r"\1sample.", rest)
    if module == "mid.attn_1":
      part, leaf = compvis.longest(rest, _VAE_PARTS)
      rest = f"{part}.{leaf}"
    return f"{half}.{module}.{rest.replace('conv_shortcut.', 'nin_shortcut.')}"

  return {name: original(name) for name in names}


def to_original(
  states: Mapping[str, Mapping[str, np.ndarray]],
  scheduler: Mapping[str, Any] | None = None,
) -> State:
  """One file's tensors, as the releases of Stable Diffusion have them.

  The text encoder of Stable Diffusion 2 lacks open_clip's last layer, which
  nothing reads. A model that predicts velocity gets ComfyUI's mark of it.

  Args:
    states: {text_encoder, unet, vae}, torch state dicts under diffusers names.
    scheduler: the model's config; None predicts noise.
  """
  file: State = {}
  if (scheduler or {}).get("prediction_type") == "v_prediction":
    file[compvis.VELOCITY] = np.zeros(0, np.float32)
  unet, vae = states["unet"], canonical(states["vae"], "vae")
  for name, key in unet_names(unet).items():
    file[compvis.UNET + key] = unet[name]
  for name, key in vae_names(vae).items():
    attention = key.endswith("weight") and "attn_1" in key and "norm" not in key
    value = vae[name]
    file[compvis.VAE + key] = value[..., None, None] if attention else value
  text = canonical(states["text_encoder"], "text_encoder")
  table = text["text_model.embeddings.token_embedding.weight"]
  if table.shape[1] == _OPEN_CLIP_WIDTH:
    return file | _open_clip(text)
  return file | {compvis.CLIP + name: value for name, value in text.items()}


def _open_clip(text: Mapping[str, np.ndarray]) -> State:
  out: State = {}
  for name, value in text.items():
    plain = name.removeprefix("text_model.")
    match = re.match(r"encoder\.layers\.(\d+)\.(.+)$", plain)
    if match is None:
      out[compvis.OPEN_CLIP + _OPEN_CLIP[plain]] = value
      continue
    block = f"{compvis.OPEN_CLIP}transformer.resblocks.{match[1]}"
    third = re.match(r"self_attn\.q_proj\.(weight|bias)$", match[2])
    if third:
      stem = name.removesuffix(f"q_proj.{third[1]}")
      parts = [text[f"{stem}{part}_proj.{third[1]}"] for part in "qkv"]
      out[f"{block}.attn.in_proj_{third[1]}"] = np.concatenate(parts)
    elif not re.match(r"self_attn\.[kv]_proj\.", match[2]):
      part, leaf = compvis.longest(match[2], _OPEN_CLIP_PARTS)
      out[f"{block}.{part}.{leaf}"] = value
  return out


def _last(names: Iterable[str], pattern: str) -> int:
  """The largest number that a pattern finds in names, or 0."""
  found = (re.match(pattern, name) for name in names)
  return max((int(match[1]) for match in found if match), default=0)
