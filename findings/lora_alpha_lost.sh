#!/usr/bin/env bash
# peft 0.21.2 to diffusers 0.42.1: a LoRA saved by the usual recipe forgets its
# alpha.
#
# Most expect: `save_lora_weights(folder, get_peft_model_state_dict(unet))` and
# `load_lora_weights(folder)` give the adapter back.
# Seen: the file holds the factors alone. Loading takes alpha = rank, so an
# adapter of alpha 2 x rank comes back at half its strength, one of RsLoRA at
# 1 / sqrt(rank) of it, and one of rank 8 within ranks of 4 at twice its
# strength. No warning says so. The recipe's scripts train with alpha = rank,
# where nothing is lost.
# What works: pass `unet_lora_adapter_metadata` as well.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 peft==0.21.2 \
  transformers==5.23.0 accelerate==1.15.0 safetensors==0.8.0
cd "$folder"
bin/python - <<'EOF'
import logging
import sys
import tempfile

import diffusers
import peft
import torch
from diffusers import (
  DDIMScheduler,
  StableDiffusionPipeline,
  UNet2DConditionModel,
)
from diffusers.training_utils import _collate_lora_metadata
from peft.utils import get_peft_model_state_dict

logging.disable(logging.WARNING)
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"


def pipeline():
  torch.manual_seed(0)
  return StableDiffusionPipeline(
    vae=diffusers.AutoencoderKL(norm_num_groups=4, block_out_channels=(8,)),
    text_encoder=None,
    tokenizer=None,
    unet=UNet2DConditionModel(
      sample_size=8,
      block_out_channels=(16,),
      layers_per_block=1,
      cross_attention_dim=16,
      down_block_types=("CrossAttnDownBlock2D",),
      up_block_types=("CrossAttnUpBlock2D",),
      attention_head_dim=4,
      norm_num_groups=4,
    ).eval(),
    scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
  )


def delta(unet):
  layer = unet.get_submodule(LAYER)
  return layer.get_delta_weight(layer.active_adapters[0]).detach()


def back(metadata, **words):
  """The norm of a LoRA after a round trip, over its norm before."""
  unet = pipeline().unet
  settings = {"r": 4, "lora_alpha": 4, "target_modules": ["to_k", "to_v"]}
  unet.add_adapter(peft.LoraConfig(**settings | words))
  for name, value in unet.named_parameters():
    if "lora_" in name:
      value.data = torch.randn(value.shape)
  folder = tempfile.mkdtemp()
  more = _collate_lora_metadata({"unet": unet}) if metadata else {}
  StableDiffusionPipeline.save_lora_weights(
    folder, unet_lora_layers=get_peft_model_state_dict(unet), **more
  )
  pipe = pipeline()
  pipe.load_lora_weights(folder)
  return round(float(delta(pipe.unet).norm() / delta(unet).norm()), 4)


cases = {
  "alpha 4, rank 4": {},
  "alpha 8, rank 4": {"lora_alpha": 8},
  "RsLoRA, alpha 4, rank 4": {"use_rslora": True},
  "alpha 4, rank 8 in to_v, 4 in to_k": {"rank_pattern": {"to_v": 8}},
}
seen = {name: back(False, **words) for name, words in cases.items()}
kept = {name: back(True, **words) for name, words in cases.items()}
print("diffusers", diffusers.__version__, "peft", peft.__version__)
print("Expected: every ratio after / before is 1.")
print("Seen without metadata:", seen)
print("Seen with metadata:   ", kept)
same = [*seen.values()] == [1.0, 0.5, 0.5, 2.0]
same = same and kept["alpha 8, rank 4"] == 1.0
sys.exit(0 if same else "The behaviour changed.")
EOF
