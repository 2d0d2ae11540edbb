#!/usr/bin/env bash
# diffusers 0.42.1, peft 0.21.2: a second LoRA takes a fused first one away.
#
# Most expect: after `fuse_lora`, the first LoRA is part of the weights, and a
# second one loaded on top acts beside it.
# Seen: the load takes the first one out of the weights again. Only the second
# acts; a Python warning speaks of unmerging. A fused erasure is gone as soon
# as somebody loads a style LoRA.
# What works: `unload_lora_weights()` after `fuse_lora`.
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
import warnings

import diffusers
import peft
import torch
from diffusers import (
  DDIMScheduler,
  StableDiffusionPipeline,
  UNet2DConditionModel,
)
from peft.utils import get_peft_model_state_dict

logging.disable(logging.WARNING)


def pipeline():
  torch.manual_seed(0)
  unet = UNet2DConditionModel(
    sample_size=8,
    block_out_channels=(16,),
    layers_per_block=1,
    cross_attention_dim=16,
    down_block_types=("CrossAttnDownBlock2D",),
    up_block_types=("CrossAttnUpBlock2D",),
    attention_head_dim=4,
    norm_num_groups=4,
  )
  return StableDiffusionPipeline(
    vae=diffusers.AutoencoderKL(norm_num_groups=4, block_out_channels=(8,)),
    text_encoder=None,
    tokenizer=None,
    unet=unet.eval(),
    scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
  )


@torch.no_grad()
def answer(pipe):
  noise = torch.Generator().manual_seed(1)
  latents = torch.randn(1, 4, 8, 8, generator=noise)
  context = torch.randn(1, 7, 16, generator=noise)
  return pipe.unet(latents, torch.tensor([10]), context).sample


def adapter(seed):
  """The folder of a LoRA that was drawn at random."""
  unet = pipeline().unet
  unet.add_adapter(
    peft.LoraConfig(r=4, lora_alpha=4, target_modules=["to_k", "to_v"])
  )
  noise = torch.Generator().manual_seed(seed)
  for name, value in unet.named_parameters():
    if "lora_" in name:
      value.data = torch.randn(value.shape, generator=noise) * 0.3
  folder = tempfile.mkdtemp()
  StableDiffusionPipeline.save_lora_weights(
    folder, unet_lora_layers=get_peft_model_state_dict(unet)
  )
  return folder


def loaded(*folders):
  pipe = pipeline()
  for name, folder in zip(("erasure", "style"), folders, strict=False):
    pipe.load_lora_weights(folder, adapter_name=name)
  pipe.set_adapters(["erasure", "style"][: len(folders)])
  return pipe


erasure, style = adapter(2), adapter(3)
both = answer(loaded(erasure, style))
first = answer(loaded(erasure))
only = pipeline()
only.load_lora_weights(style, adapter_name="style")
second = answer(only)


def far(value):
  return {
    name: round(float((value - other).norm()), 4)
    for name, other in (("both", both), ("erasure", first), ("style", second))
  }


pipe = pipeline()
pipe.load_lora_weights(erasure, adapter_name="erasure")
pipe.fuse_lora(components=["unet"])
fused = far(answer(pipe))
with warnings.catch_warnings(record=True) as caught:
  warnings.simplefilter("always")
  pipe.load_lora_weights(style, adapter_name="style")
load = far(answer(pipe))
right = pipeline()
right.load_lora_weights(erasure, adapter_name="erasure")
right.fuse_lora(components=["unet"])
right.unload_lora_weights()
right.load_lora_weights(style, adapter_name="style")
unloaded = far(answer(right))

print("diffusers", diffusers.__version__, "peft", peft.__version__)
print("Expected: a distance of 0 from the answer of both LoRAs.")
print("Seen: the distance of the UNet's answer from that of")
print("  erasure fused                 ", fused)
print("  erasure fused, style loaded   ", load)
print("  ... with an unload in between ", unloaded)
print("Warnings of the load:", sorted({str(w.message)[:80] for w in caught}))
near, apart = 1e-3, 0.05
same = (
  fused["erasure"] < near
  and load["style"] < near
  and load["both"] > apart
  and unloaded["both"] < near
)
sys.exit(0 if same else "The behaviour changed.")
EOF
