"""Tiny Stable Diffusion pipelines with random weights, made by torch."""

import json
import pathlib

# name: (levels, unet keys, vae keys, text keys)
CONFIGS = {
  "sd1": (
    {
      "block_out_channels": (32, 64),
      "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
      "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
      "attention_head_dim": 4,
      "layers_per_block": 2,
      "cross_attention_dim": 24,
    },
    {"block_out_channels": (16, 32), "layers_per_block": 2},
    {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2},
  ),
  "one_level": (
    {
      "block_out_channels": (32,),
      "down_block_types": ("CrossAttnDownBlock2D",),
      "up_block_types": ("CrossAttnUpBlock2D",),
      "attention_head_dim": 2,
      "layers_per_block": 1,
      "cross_attention_dim": 16,
    },
    {"block_out_channels": (16,), "layers_per_block": 1},
    {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1},
  ),
  "three_levels": (
    {
      "block_out_channels": (16, 48, 32),
      "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
      "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
      "attention_head_dim": 8,
      "layers_per_block": 1,
      "cross_attention_dim": 40,
      "norm_num_groups": 8,
    },
    {"block_out_channels": (8, 24, 16), "norm_num_groups": 4},
    {"hidden_size": 40, "num_attention_heads": 5, "num_hidden_layers": 3},
  ),
  "sd2": (
    {
      "block_out_channels": (32, 64),
      "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
      "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
      "attention_head_dim": (2, 4),
      "layers_per_block": 2,
      "cross_attention_dim": 32,
      "use_linear_projection": True,
    },
    {"block_out_channels": (16, 32), "layers_per_block": 2},
    {
      "hidden_size": 32,
      "num_attention_heads": 4,
      "num_hidden_layers": 2,
      "hidden_act": "gelu",
    },
  ),
}


def build(name: str, seed: int = 0):
  """The torch text encoder, UNet and VAE of one config."""
  import torch
  from diffusers import AutoencoderKL, UNet2DConditionModel
  from transformers import CLIPTextConfig, CLIPTextModel

  unet, vae, text = CONFIGS[name]
  levels = len(vae["block_out_channels"])
  torch.manual_seed(seed)
  models = {
    "text_encoder": CLIPTextModel(
      CLIPTextConfig(
        vocab_size=64,
        max_position_embeddings=8,
        intermediate_size=2 * text["hidden_size"],
        bos_token_id=62,
        eos_token_id=63,
        **text,
      )
    ),
    "unet": UNet2DConditionModel(sample_size=8, **unet),
    "vae": AutoencoderKL(
      **{
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "norm_num_groups": 8,
        **vae,
      }
    ),
  }
  # Norms and biases start as ones and zeros: make every tensor tell its place.
  for model in models.values():
    for parameter in model.parameters():
      torch.nn.init.normal_(parameter, std=0.2)
  return models


def write(folder: pathlib.Path, name: str = "sd1", **save_kwargs):
  """Writes a diffusers folder as torch's libraries do; returns the models."""
  write_frame(folder)
  models = build(name)
  dtype = save_kwargs.pop("dtype", None)
  for part, model in models.items():
    model.to(dtype).save_pretrained(folder / part, **save_kwargs)
  return models


def write_frame(folder: pathlib.Path):
  """Everything of a folder except the networks."""
  from diffusers import PNDMScheduler

  PNDMScheduler(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    skip_prk_steps=True,
    steps_offset=1,
  ).save_pretrained(folder / "scheduler")
  write_tokenizer(folder / "tokenizer")
  index = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.42.0",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
  }
  (folder / "model_index.json").write_text(json.dumps(index))


def write_tokenizer(folder: pathlib.Path):
  """The smallest CLIP tokenizer that transformers opens."""
  letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
  tokens = [*letters, *(c + "</w>" for c in letters)]
  tokens += ["ab", "<|startoftext|>", "<|endoftext|>"]
  folder.mkdir()
  vocabulary = {token: i for i, token in enumerate(tokens)}
  (folder / "vocab.json").write_text(json.dumps(vocabulary))
  (folder / "merges.txt").write_text("#version: 0.2\na b\n")
  (folder / "tokenizer_config.json").write_text(
    json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 8})
  )
