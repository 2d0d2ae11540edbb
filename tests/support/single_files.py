"""The single-file layout, written down independently of `convert.compvis`.

From diffusers names to the original ones, by walking the blocks in the order
in which the original code builds them.
"""

import re


def unet_names(names, layers_per_block):
  """{diffusers name: original name, without its prefix}."""
  modules = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
  }
  levels = 1 + max(int(n.split(".")[1]) for n in names if n[:4] == "down")

  def has(module):
    return any(name.startswith(module + ".") for name in names)

  index = 1
  for level in range(levels):
    for layer in range(layers_per_block):
      modules[f"down_blocks.{level}.resnets.{layer}"] = (
        f"input_blocks.{index}.0"
      )
      attention = f"down_blocks.{level}.attentions.{layer}"
      if has(attention):
        modules[attention] = f"input_blocks.{index}.1"
      index += 1
    if level < levels - 1:
      sampler = f"down_blocks.{level}.downsamplers.0.conv"
      modules[sampler] = f"input_blocks.{index}.0.op"
      index += 1
  index = 0
  for level in range(levels):
    for layer in range(layers_per_block + 1):
      slots = [f"up_blocks.{level}.resnets.{layer}"]
      if has(attention := f"up_blocks.{level}.attentions.{layer}"):
        slots.append(attention)
      if layer == layers_per_block and level < levels - 1:
        slots.append(f"up_blocks.{level}.upsamplers.0")
      for slot, module in enumerate(slots):
        modules[module] = f"output_blocks.{index}.{slot}"
      index += 1
  parts = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
  }
  out = {}
  for name in names:
    module = max((m for m in modules if name.startswith(m + ".")), key=len)
    rest = name[len(module) + 1 :]
    if ".resnets." in module:
      part, leaf = rest.split(".")
      rest = f"{parts[part]}.{leaf}"
    out[name] = f"{modules[module]}.{rest}"
  return out


def vae_names(names, levels):
  """{diffusers name: original name, without its prefix}."""
  out = {}
  for name in names:
    new = re.sub(r"mid_block\.resnets\.(\d)", _one_up, name)
    new = new.replace("mid_block.attentions.0", "mid.attn_1")
    if "attn_1" in new:
      new = new.replace("to_out.0", "proj_out").replace("group_norm", "norm")
      new = re.sub(r"\.to_([qkv])\.", r".\1.", new)
    new = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", new)
    new = re.sub(
      r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", new
    )
    new = re.sub(
      r"up_blocks\.(\d)\.(resnets|upsamplers\.0)",
      lambda m: (
        f"up.{levels - 1 - int(m[1])}."
        + ("block" if m[2] == "resnets" else "upsample")
      ),
      new,
    )
    new = new.replace("conv_shortcut", "nin_shortcut")
    out[name] = new.replace("conv_norm_out", "norm_out")
  return out


def _one_up(match):
  return f"mid.block_{int(match[1]) + 1}"


def from_diffusers(states, layers_per_block, levels):
  """One file's tensors from the states of the three parts (SD 1.x)."""
  unet = unet_names(states["unet"], layers_per_block)
  vae = vae_names(states["vae"], levels)
  out = {
    f"model.diffusion_model.{unet[name]}": value
    for name, value in states["unet"].items()
  }
  for name, value in states["vae"].items():
    if ".attentions." in name and value.ndim == 2:
      value = value[:, :, None, None]
    out[f"first_stage_model.{vae[name]}"] = value
  for name, value in states["text_encoder"].items():
    prefix = "" if name.startswith("text_model.") else "text_model."
    out[f"cond_stage_model.transformer.{prefix}{name}"] = value
  return out


def with_averages(tensors, averaged):
  """Adds `model_ema.*`, holding what `averaged` makes of each UNet tensor."""
  out = dict(tensors)
  for name, value in tensors.items():
    if name.startswith("model.diffusion_model."):
      key = "".join(name.split(".")[1:])
      out[f"model_ema.{key}"] = averaged(value)
  return out
