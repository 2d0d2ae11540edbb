#!/usr/bin/env bash
# diffusers 0.42.1, peft 0.21.2: one call with `scale` 0 puts a LoRA at full
# strength.
#
# Most expect: `cross_attention_kwargs={"scale": 0.0}` switches the LoRA off
# for one call; the weight chosen with `set_adapters` holds afterwards.
# Seen: a call with 0.5 keeps the weight 0.3; a call with 0.0 leaves 1.0. So
# the usual "first the base, then the adapter" draws the adapter too strong.
# What works: `disable_lora()` and `enable_lora()` around the base's call.
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
latents, context = torch.randn(1, 4, 8, 8), torch.randn(1, 7, 16)


@torch.no_grad()
def answer(**words):
  return unet(latents, torch.tensor([10]), context, **words).sample


def weight():
  return round(
    next(
      float(m.scaling["default"])
      for n, m in unet.named_modules()
      if n.endswith("attn2.to_v")
    ),
    4,
  )


unet.set_adapters(["default"], [0.3])
before, weights = answer(), [weight()]
answer(cross_attention_kwargs={"scale": 0.5})
half = answer()
weights.append(weight())
answer(cross_attention_kwargs={"scale": 0.0})
zero = answer()
weights.append(weight())
unet.set_adapters(["default"], [1.0])
full = answer()

print("diffusers", diffusers.__version__, "peft", peft.__version__)
print("Expected weights before, after a call at 0.5, after one at 0.0:")
print("  [0.3, 0.3, 0.3]")
print("Seen:", weights)
print("The answer moved by", float((zero - before).norm()))
print("and is that of full strength to", float((zero - full).norm()))
same = (
  weights == [0.3, 0.3, 1.0]
  and (half - before).norm() < 1e-4
  and (zero - before).norm() > 0.01
  and (zero - full).norm() < 1e-4
)
sys.exit(0 if same else "The behaviour changed.")
EOF
