"""Turns published image classifiers into parameters of our networks.

Each library has one table of names. Batch norms are folded into the
convolutions before them, in float64.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from unlearning_jax.convert import names, reader
from unlearning_jax.models.flax_layers import parameter_shapes
from unlearning_jax.models.resnet import ResNet, ResNetConfig
from unlearning_jax.models.vision import VisionConfig, VisionTransformer

Params = dict[str, Any]
Table = Sequence[tuple[str, str]]

# Patterns of names, each with its replacement, in the order of application.
CLIP: Table = (
  (r"^vision_model\.embeddings\.", ""),
  (r"^vision_model\.pre_layrnorm\.", "pre_norm."),
  (r"^vision_model\.encoder\.", "transformer."),
  (r"^vision_model\.post_layernorm\.", "post_norm."),
  (r"^visual_projection\.", "head."),
)
TRANSFORMERS_VIT: Table = (
  (r"^vit\.embeddings\.cls_token$", "class_embedding"),
  (r"^vit\.embeddings\.position_embeddings$", "position_embedding.weight"),
  (r"^vit\.embeddings\.patch_embeddings\.projection\.", "patch_embedding."),
  (r"^vit\.encoder\.layer\.(\d+)\.", r"transformer.layers.\1."),
  (r"\.attention\.attention\.(query|key|value)\.", r".self_attn.\1."),
  (r"\.attention\.output\.dense\.", ".self_attn.out_proj."),
  (r"\.intermediate\.dense\.", ".mlp.fc1."),
  (r"\.output\.dense\.", ".mlp.fc2."),
  (r"\.layernorm_before\.", ".layer_norm1."),
  (r"\.layernorm_after\.", ".layer_norm2."),
  (r"\.self_attn\.(q|k|v)(uery|ey|alue)\.", r".self_attn.\1_proj."),
  (r"^vit\.layernorm\.", "post_norm."),
  (r"^classifier\.", "head."),
)
TIMM_VIT: Table = (
  (r"^cls_token$", "class_embedding"),
  (r"^pos_embed$", "position_embedding.weight"),
  (r"^patch_embed\.proj\.", "patch_embedding."),
  (r"^blocks\.(\d+)\.", r"transformer.layers.\1."),
  (r"\.attn\.(q|k|v)\.", r".self_attn.\1_proj."),
  (r"\.attn\.proj\.", ".self_attn.out_proj."),
  (r"\.norm(1|2)\.", r".layer_norm\1."),
  (r"^norm\.", "post_norm."),
)
TORCHVISION_RESNET: Table = (
  (r"^conv1\.", "stem."),
  (r"^bn1\.", "stem.norm."),
  *((rf"^layer{i + 1}\.(\d+)\.", rf"block{i}.\1.") for i in range(4)),
  (r"\.bn(\d)\.", r".conv\1.norm."),
  (r"\.downsample\.0\.", ".shortcut."),
  (r"\.downsample\.1\.", ".shortcut.norm."),
  (r"^fc\.", "head."),
)
TRANSFORMERS_RESNET: Table = (
  (r"^resnet\.embedder\.embedder\.", "stem."),
  (r"^resnet\.encoder\.stages\.(\d+)\.layers\.(\d+)\.", r"block\1.\2."),
  *((rf"\.layer\.{i}\.", f".conv{i + 1}.") for i in range(3)),
  (r"\.convolution\.", "."),
  (r"\.normalization\.", ".norm."),
  (r"^classifier\.1\.", "head."),
)


def vision_transformer(
  state: Mapping[str, np.ndarray], table: Table, config: VisionConfig, what: str
) -> Params:
  """Parameters of a `VisionTransformer`.

  Args:
    state: the file's tensors.
    table: names of the library that wrote it.
    what: the file, for messages.

  Raises:
    ValueError: tensors are missing, left over, of other shapes or not finite.
  """
  # Older versions of transformers stored this buffer.
  kept = {k: v for k, v in state.items() if not k.endswith("position_ids")}
  state = reader.as_float32(_split_qkv(kept), what)
  state = renamed(state, table, what)
  for name in ("class_embedding", "position_embedding.weight"):
    # Some libraries store a leading axis for the batch.
    if name in state:
      shape = state[name].shape
      state[name] = state[name].reshape(
        shape[-1:] if "cl" in name else shape[-2:]
      )
  side = config.image_size
  return laid_out(state, VisionTransformer(config), (side, side, 3), what)


def resnet(
  state: Mapping[str, np.ndarray], table: Table, config: ResNetConfig, what: str
) -> Params:
  """Parameters of a `ResNet`, with its batch norms folded.

  Arguments and errors are those of `vision_transformer`.
  """
  kept = {k: v for k, v in state.items() if not k.endswith("batches_tracked")}
  state = renamed(reader.as_float32(kept, what), table, what)
  return laid_out(folded(state, what), ResNet(config), (64, 64, 3), what)


def renamed(
  state: Mapping[str, np.ndarray], table: Table, what: str
) -> names.State:
  """A state under the names of our networks.

  Args:
    state: the file's tensors.
    table: patterns, applied one after the other.
    what: the file, for messages.

  Raises:
    ValueError: two tensors get one name.
  """
  found: names.State = {}
  for name, value in state.items():
    new = name
    for pattern, replacement in table:
      new = re.sub(pattern, replacement, new)
    if new in found:
      raise ValueError(f"{what}: {name!r} is given twice")
    found[new] = value
  return found


def _split_qkv(state: Mapping[str, np.ndarray]) -> names.State:
  """Splits the matrix in which timm keeps queries, keys and values."""
  found: names.State = {}
  for name, value in state.items():
    if ".qkv." not in name:
      found[name] = value
      continue
    for letter, part in zip("qkv", np.split(value, 3), strict=True):
      found[name.replace(".qkv.", f".{letter}.")] = part
  return found


def folded(state: names.State, what: str, epsilon: float = 1e-5) -> names.State:
  """Makes scale (conv(x) - mean) / sqrt(variance + eps) + shift one conv.

  Args:
    state: tensors, those of a norm under its convolution's name and `.norm`.
    what: the file, for messages.
    epsilon: eps of every batch norm; 1e-5 is torch's default.

  Raises:
    ValueError: a batch norm is not whole.
  """
  norms = [
    n[: -len(".norm.weight")] for n in state if n.endswith("norm.weight")
  ]
  found = {name: v for name, v in state.items() if ".norm." not in name}
  for conv in norms:
    given = [
      state.get(f"{conv}.{part}")
      for part in ("weight", "norm.weight", "norm.bias", "norm.running_mean",
                   "norm.running_var")
    ]  # fmt: skip
    if any(value is None for value in given):
      raise ValueError(f"{what}: {conv!r} lacks a part of its batch norm")
    weight, gamma, beta, mean, variance = (np.float64(v) for v in given)
    scale = gamma / np.sqrt(variance + epsilon)
    folded = weight * scale[:, None, None, None]
    found[f"{conv}.weight"] = folded.astype(np.float32)
    found[f"{conv}.bias"] = (beta - mean * scale).astype(np.float32)
  return found


def laid_out(
  state: names.State, network: nn.Module, shape: tuple[int, ...], what: str
) -> Params:
  """The parameters of a network of images.

  Args:
    state: its tensors under its own names.
    network: which takes a batch of them.
    shape: of one input.
    what: the file, for messages.

  Raises:
    ValueError: tensors are missing, left over or of other shapes.
  """
  given = jax.ShapeDtypeStruct((1, *shape), np.float32)
  template = parameter_shapes(network, given)
  return names.to_flax(state, template, what)


def timm_config(state: Mapping[str, np.ndarray], what: str) -> VisionConfig:
  """The shapes of a timm ViT, read from its tensors, as it has no config file.

  Raises:
    ValueError: a tensor that decides a shape is missing.
  """
  wanted = ("patch_embed.proj.weight", "pos_embed", "head.weight")
  names.report_mismatch(what, missing=[n for n in wanted if n not in state])
  width, _, patch, _ = state["patch_embed.proj.weight"].shape
  blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
  side = round((state["pos_embed"].shape[-2] - 1) ** 0.5)
  return VisionConfig(
    hidden_size=width,
    intermediate_size=4 * width,
    num_hidden_layers=len(blocks),
    # A head has 64 channels in every size of the model.
    num_attention_heads=width // 64,
    image_size=side * patch,
    patch_size=patch,
    outputs=len(state["head.weight"]),
    hidden_act="gelu",
    layer_norm_eps=1e-6,
    is_clip=False,
  )


def torchvision_config(
  state: Mapping[str, np.ndarray], what: str
) -> ResNetConfig:
  """The shapes of a torchvision ResNet of bottlenecks, read from its tensors.

  Raises:
    ValueError: a tensor that decides a shape is missing.
  """
  wanted = ["conv1.weight", "fc.weight", "layer4.0.conv3.weight"]
  names.report_mismatch(what, missing=[n for n in wanted if n not in state])
  stages = [f"layer{i}" for i in range(1, 5)]
  return ResNetConfig(
    depths=tuple(
      len({n.split(".")[1] for n in state if n.startswith(f"{stage}.")})
      for stage in stages
    ),
    widths=tuple(len(state[f"{stage}.0.conv3.weight"]) for stage in stages),
    stem=len(state["conv1.weight"]),
    classes=len(state["fc.weight"]),
  )
