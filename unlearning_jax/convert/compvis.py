"""The single-file layout of the original Stable Diffusion releases.

One file holds the UNet (`model.diffusion_model.*`), the VAE
(`first_stage_model.*`) and the text encoder (`cond_stage_model.*`: CLIP in 1.x,
open_clip in 2.x).
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from unlearning_jax.convert.names import State, report_mismatch

UNET = "model.diffusion_model."
VAE = "first_stage_model."
CLIP = "cond_stage_model.transformer."
OPEN_CLIP = "cond_stage_model.model."
_EMA = "model_ema."
_BLOCKS = ("input_blocks.", "middle_block.", "output_blocks.", "time_embed.")
# Schedule constants, training losses and open_clip's unused heads.
_IGNORED = re.compile(
  r"(sqrt_|log_|one_minus_|recip_|recipm1_)*alphas_cumprod(_prev)?$"
  r"|(betas|lvlb_weights|logvar|scale_factor|posterior_\w+)$"
  r"|first_stage_model\.loss\."
  r"|cond_stage_model\.((transformer|model)\.)?"
  r"(logit_scale|text_projection(\.weight)?|attn_mask)$"
  # `check_marks` reads it.
  r"|v_pred$"
)
# ComfyUI marks a model that predicts velocity, or whose noise has no end.
VELOCITY, _ZERO_SNR = "v_pred", "ztsnr"
MODULES = {
  "time_embed.0": "time_embedding.linear_1",
  "time_embed.2": "time_embedding.linear_2",
  "input_blocks.0.0": "conv_in",
  "out.0": "conv_norm_out",
  "out.2": "conv_out",
  "middle_block.0": "mid_block.resnets.0",
  "middle_block.1": "mid_block.attentions.0",
  "middle_block.2": "mid_block.resnets.1",
}
RESNET = {
  "in_layers.0": "norm1",
  "in_layers.2": "conv1",
  "emb_layers.1": "time_emb_proj",
  "out_layers.0": "norm2",
  "out_layers.3": "conv2",
  "skip_connection": "conv_shortcut",
}
VAE_MODULES = {
  "mid.block_1": "mid_block.resnets.0",
  "mid.block_2": "mid_block.resnets.1",
  "mid.attn_1": "mid_block.attentions.0",
  "norm_out": "conv_norm_out",
}
VAE_PARTS = {
  "nin_shortcut": "conv_shortcut",
  "norm": "group_norm",
  "q": "to_q",
  "k": "to_k",
  "v": "to_v",
  "proj_out": "to_out.0",
}
OPEN_CLIP_NAMES = {
  "positional_embedding": "embeddings.position_embedding.weight",
  "token_embedding.weight": "embeddings.token_embedding.weight",
  "ln_final.weight": "final_layer_norm.weight",
  "ln_final.bias": "final_layer_norm.bias",
}
OPEN_CLIP_PARTS = {
  "ln_1": "layer_norm1",
  "ln_2": "layer_norm2",
  "mlp.c_fc": "mlp.fc1",
  "mlp.c_proj": "mlp.fc2",
  "attn.out_proj": "self_attn.out_proj",
}


@dataclasses.dataclass(frozen=True)
class Depths:
  """The three counts by which this layout numbers its layers."""

  unet_layers_per_block: int
  vae_levels: int
  text_layers: int

  @classmethod
  def from_configs(cls, configs: Mapping[str, Mapping]) -> "Depths":
    """Reads the counts from the components' `config.json`."""
    return cls(
      configs["unet"].get("layers_per_block", 2),
      len(configs["vae"].get("block_out_channels", (64,))),
      configs["text_encoder"].get("num_hidden_layers", 12),
    )


def add_prefixes(state: Mapping[str, Any]) -> Mapping[str, Any]:
  """Adds the prefix that the keys of a bare component of this layout lack."""
  for prefix, begun, modules in (
    ("model.", (_EMA, VELOCITY, _ZERO_SNR), (UNET.removeprefix("model."),)),
    (UNET, (_EMA, VELOCITY, _ZERO_SNR), _BLOCKS),
    (VAE, (_EMA,), ("encoder.down.", "decoder.up.")),
    (OPEN_CLIP, (), ("transformer.resblocks.",)),
  ):
    if any(key.startswith(modules) for key in state):
      return {
        key if key.startswith(begun) else prefix + key: value
        for key, value in state.items()
      }
  return state


def check_marks(
  state: Iterable[str], scheduler: Mapping[str, Any], source: str
):
  """Refuses a model that is marked to predict what the base does not.

  Args:
    state: the file's names.
    scheduler: the base's config.
    source: what to call the file in errors.

  Raises:
    ValueError: naming the mark and what would read the file.
  """
  kind = scheduler.get("prediction_type", "epsilon")
  if VELOCITY in state and kind != "v_prediction":
    raise ValueError(
      f"{source}: is marked {VELOCITY!r}, so it predicts velocity, and the "
      f"base predicts {kind}; give a base that predicts velocity, such as "
      "Stable Diffusion 2.1 at 768 pixels"
    )
  if _ZERO_SNR in state:
    raise ValueError(
      f"{source}: is marked {_ZERO_SNR!r}, so it is trained up to noise alone, "
      "which is not supported"
    )


def is_compvis(state: Mapping[str, np.ndarray]) -> bool:
  """Whether the keys begin as in this layout."""
  return any(key.startswith((UNET, VAE, CLIP, OPEN_CLIP)) for key in state)


def from_compvis(
  state: Mapping[str, np.ndarray],
  depths: Depths,
  *,
  ema: bool | None = None,
  source: str = "state dict",
) -> dict[str, State]:
  """Splits a file of this layout into components under diffusers names.

  Args:
    state: tensors under their names in the file.
    ema: True for the UNet's averaged weights (`model_ema.*`), which diffusers
      folders hold; False for the trained ones, which editing code of this
      layout changes; None if the file may hold one kind only.
    source: what to call the file in errors.

  Returns:
    {component: tensors}, without components that the file does not hold.

  Raises:
    ValueError: a key is unknown; the file has both kinds of UNet weights and
      `ema` does not choose, or lacks the chosen kind.
  """
  state = _choose_weights(state, ema, source)
  parts: dict[str, State] = {}
  unknown = []
  for key, value in state.items():
    if _IGNORED.match(key):
      continue
    converted = _convert(key, value, depths)
    if converted is None:
      unknown.append(key)
      continue
    component, tensors = converted
    parts.setdefault(component, {}).update(tensors)
  report_mismatch(source, unknown=unknown)
  return parts


def _choose_weights(
  state: Mapping[str, np.ndarray], ema: bool | None, source: str
) -> State:
  """Keeps the chosen UNet weights and drops the state of the averaging."""
  averaged = {key for key in state if key.startswith(_EMA)}
  weights = averaged - {_EMA + "decay", _EMA + "num_updates"}
  if ema and not weights:
    raise ValueError(f"{source}: ema=True, but it holds no averaged weights")
  if ema is None and weights:
    raise ValueError(
      f"{source}: holds averaged (EMA) and trained UNet weights; choose: "
      "ema=True (--ema of launch.convert) is what diffusers folders hold, "
      "ema=False (--noema) is what fine-tuning and editing in this layout "
      "changed"
    )
  kept = {key: value for key, value in state.items() if key not in averaged}
  if not ema:
    return kept
  # The name of an averaged weight is that of the trained one without dots.
  # A VAE's file has the averages of a VAE.
  start = UNET if any(key.startswith(UNET) for key in kept) else VAE
  gone = "model." if start == UNET else VAE
  pairs = {
    key: _EMA + key.removeprefix(gone).replace(".", "")
    for key in kept
    if key.startswith(start) and not _IGNORED.match(key)
  }
  report_mismatch(
    source,
    missing=sorted(set(pairs.values()) - weights),
    unknown=sorted(
      name
      for name in weights - set(pairs.values())
      # Averages of the losses that a VAE is trained with.
      if not (start == VAE and name.startswith(_EMA + "lo"))
    ),
  )
  return kept | {key: state[name] for key, name in pairs.items()}


def _convert(
  key: str, value: np.ndarray, depths: Depths
) -> tuple[str, State] | None:
  """One tensor's component and new names; None if the key is unknown."""
  rules: tuple[tuple[str, str, Callable[..., State | None]], ...] = (
    (UNET, "unet", _unet),
    (VAE, "vae", _vae),
    (CLIP, "text_encoder", lambda key, value, _: {key: value}),
    (OPEN_CLIP, "text_encoder", _open_clip),
  )
  for prefix, component, rule in rules:
    if key.startswith(prefix):
      tensors = rule(key.removeprefix(prefix), value, depths)
      return None if tensors is None else (component, tensors)
  return None


def _unet(key: str, value: np.ndarray, depths: Depths) -> State | None:
  module, rest = longest(key, MODULES)
  if module is None:
    match = re.match(r"(input|output)_blocks\.(\d+)\.(\d)\.(.+)$", key)
    if match is None:
      return None
    side, index, slot, rest = match.groups()
    per_level = depths.unet_layers_per_block + 1
    # conv_in is input block 0 and belongs to no level.
    level, layer = divmod(int(index) - (side == "input"), per_level)
    block = f"{'down' if side == 'input' else 'up'}_blocks.{level}"
    if rest.startswith("op."):
      return {f"{block}.downsamplers.0.conv.{rest[3:]}": value}
    if rest.startswith("conv."):
      return {f"{block}.upsamplers.0.{rest}": value}
    module = f"{block}.{'attentions' if slot == '1' else 'resnets'}.{layer}"
  part, leaf = longest(rest, RESNET)
  return {f"{module}.{part}.{leaf}" if part else f"{module}.{rest}": value}


def _vae(key: str, value: np.ndarray, depths: Depths) -> State | None:
  half, _, key = key.partition(".")
  if half in ("quant_conv", "post_quant_conv"):
    return {f"{half}.{key}": value}
  if half not in ("encoder", "decoder"):
    return None
  module, rest = longest(key, VAE_MODULES)
  if module is None:
    match = re.match(r"(?:down|up)\.(\d+)\.(.+)$", key)
    if match is None:
      return {f"{half}.{key}": value}
    level, rest = int(match[1]), match[2]
    # This layout counts the decoder's levels from the image down, diffusers
    # from the latents up.
    if half == "decoder":
      module = f"up_blocks.{depths.vae_levels - 1 - level}"
    else:
      module = f"down_blocks.{level}"
    rest = re.sub(r"^block\.", "resnets.", rest)
    rest = re.sub(r"^(down|up)sample\.", r"\1samplers.0.", rest)
  head, _, leaf = rest.rpartition(".")
  first, _, last = head.rpartition(".")
  if last in VAE_PARTS:
    rest = ".".join(filter(None, (first, VAE_PARTS[last], leaf)))
  return {f"{half}.{module}.{rest}": value}


def _open_clip(key: str, value: np.ndarray, depths: Depths) -> State | None:
  if key in OPEN_CLIP_NAMES:
    return {f"text_model.{OPEN_CLIP_NAMES[key]}": value}
  match = re.match(r"transformer\.resblocks\.(\d+)\.(.+)$", key)
  if match is None:
    return None
  layer, rest = int(match[1]), match[2]
  # Stable Diffusion 2 reads the states before open_clip's last layer, which
  # diffusers therefore neither stores nor counts.
  if layer == depths.text_layers:
    return {}
  stem = f"text_model.encoder.layers.{layer}"
  if packed := re.match(r"attn\.in_proj_(weight|bias)$", rest):
    # One row too many makes the last part too short, which is refused.
    third = -(-len(value) // 3)
    return {
      f"{stem}.self_attn.{part}_proj.{packed[1]}": value[i : i + third]
      for part, i in zip("qkv", range(0, 3 * third, third), strict=True)
    }
  part, leaf = longest(rest, OPEN_CLIP_PARTS)
  return {f"{stem}.{part}.{leaf}": value} if part else None


def longest(key: str, table: Mapping[str, str]) -> tuple[str | None, str]:
  """The new name of the module that `key` starts with, and the rest of it."""
  for old, new in table.items():
    if key.startswith(old + "."):
      return new, key[len(old) + 1 :]
  return None, key
