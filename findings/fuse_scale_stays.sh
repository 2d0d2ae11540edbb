#!/usr/bin/env bash
# diffusers 0.42.1, peft 0.21.2: `unfuse_lora` does not undo a fuse's scale.
#
# Most expect: `fuse_lora(lora_scale=0.5)` and `unfuse_lora()` leave the
# adapter as it was; the documentation says that unfusing reverses fusing.
# Seen: the adapter stays at half its weight, and a second fuse at 0.5 acts
# with a quarter. A sweep over scales in one process multiplies them.
# What works: `set_adapters` anew before each fuse.
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
unet.add_adapter(peft.LoraConfig(r=4, lora_alpha=4, target_modules=["to_v"]))
for name, value in unet.named_parameters():
  if "lora_" in name:
    value.data = torch.randn(value.shape)
layer = next(m for n, m in unet.named_modules() if n.endswith("attn2.to_v"))
plain = layer.base_layer.weight.detach().clone()
delta = layer.get_delta_weight("default").detach().norm()


def strength():
  """How much of the LoRA the layer's weights hold."""
  weight = layer.base_layer.weight.detach()
  return round(float((weight - plain).norm() / delta), 4)


seen = []
for _ in range(3):
  unet.fuse_lora(lora_scale=0.5)
  seen.append(strength())
  unet.unfuse_lora()
unet.set_adapters(["default"], [1.0])
unet.fuse_lora(lora_scale=0.5)
reset = strength()

print("diffusers", diffusers.__version__, "peft", peft.__version__)
print("Expected: three fuses at 0.5 act with [0.5, 0.5, 0.5].")
print("Seen:", seen, "and, after set_adapters(1.0),", reset)
same = seen == [0.5, 0.25, 0.125] and reset == 0.5
sys.exit(0 if same else "The behaviour changed.")
EOF
