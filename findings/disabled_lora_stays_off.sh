#!/usr/bin/env bash
# diffusers 0.42.1, peft 0.21.2: a LoRA loaded after `disable_lora` is listed
# as active and does nothing.
#
# Most expect: `disable_lora` switches off the adapters of that moment; a new
# one, or one that `set_adapters` names, acts.
# Seen: layers that held an adapter stay off until `enable_lora`.
# `get_active_adapters` names the new one all the same, and the pipeline draws
# with the base: an attack that compares adapters measures the base twice.
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
from peft.utils import get_peft_model_state_dict

logging.disable(logging.WARNING)


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


@torch.no_grad()
def moved(pipe):
  """How far the UNet's answer is from the base's."""
  noise = torch.Generator().manual_seed(1)
  latents = torch.randn(1, 4, 8, 8, generator=noise)
  context = torch.randn(1, 7, 16, generator=noise)
  words = latents, torch.tensor([10]), context
  base = pipeline().unet(*words).sample
  return round(float((pipe.unet(*words).sample - base).norm()), 4)


first, second = adapter(2), adapter(3)
alone = pipeline()
alone.load_lora_weights(second, adapter_name="second")
pipe = pipeline()
pipe.load_lora_weights(first, adapter_name="first")
pipe.disable_lora()
pipe.load_lora_weights(second, adapter_name="second")
names, seen = pipe.get_active_adapters(), [moved(pipe)]
pipe.set_adapters(["second"], [1.0])
seen.append(moved(pipe))
pipe.enable_lora()
seen.append(moved(pipe))
print("diffusers", diffusers.__version__, "peft", peft.__version__)
print("Active adapters:", names)
print("Expected: the answer is", moved(alone), "from the base's, three times")
print("Seen after load, set_adapters, enable_lora:", seen)
same = names == ["second"] and seen[:2] == [0.0, 0.0]
same = same and abs(seen[2] - moved(alone)) < 1e-3
sys.exit(0 if same else "The behaviour changed.")
EOF
