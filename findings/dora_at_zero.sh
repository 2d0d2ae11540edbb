#!/usr/bin/env bash
# peft 0.21.2 in diffusers 0.42.1: a DoRA at weight 0 is not the base model.
#
# Most expect: `set_adapters(name, 0.0)` gives the base's answer, as it does
# for a LoRA, and 0.5 gives about half of the change.
# Seen: the weight scales the low-rank part alone. The trained magnitudes act
# in full at every weight, so a model "without" its adapter still answers with
# most of it.
# What works: `disable_adapters()`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 peft==0.21.2 \
  transformers==5.23.0 accelerate==1.15.0 safetensors==0.8.0
cd "$folder"
bin/python - <<'EOF'
import sys

import diffusers
import peft
import torch
from diffusers import UNet2DConditionModel

latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
context = torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def answer(unet):
  return unet(latents, torch.tensor([10]), context).sample


def changes(use_dora):
  """How far the answer is from the base's at weights 1, 0.5, 0 and off."""
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
  ).eval()
  base = answer(unet)
  unet.add_adapter(
    peft.LoraConfig(
      r=4, lora_alpha=4, target_modules=["to_k", "to_v"], use_dora=use_dora
    )
  )
  unet.requires_grad_(False)
  for name, value in unet.named_parameters():
    if "magnitude" in name or "lora_" in name:
      value.requires_grad_(True)
  trained = [p for p in unet.parameters() if p.requires_grad]
  optimizer = torch.optim.Adam(trained, lr=0.05)
  target = torch.randn(base.shape, generator=torch.Generator().manual_seed(3))
  for _ in range(100):
    optimizer.zero_grad()
    guess = unet(latents, torch.tensor([10]), context).sample
    ((guess - target) ** 2).mean().backward()
    optimizer.step()
  seen = []
  for weight in (1.0, 0.5, 0.0):
    unet.set_adapters(["default"], [weight])
    seen.append(round(float((answer(unet) - base).norm()), 4))
  unet.disable_adapters()
  return [*seen, round(float((answer(unet) - base).norm()), 4)]


lora, dora = changes(False), changes(True)
print("diffusers", diffusers.__version__, "peft", peft.__version__)
print("Expected: no distance from the base at weight 0, for both.")
print("Seen: distances at weights 1, 0.5, 0, and disabled")
print("  LoRA", lora)
print("  DoRA", dora)
same = lora[2] < 1e-3 and dora[2] > 0.1 * dora[0] and dora[3] < 1e-3
sys.exit(0 if same else "The behaviour changed.")
EOF
