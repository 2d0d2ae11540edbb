#!/usr/bin/env bash
# peft 0.21.2: a fresh OFT on a 3 x 3 convolution scrambles its input.
#
# Most expect: an adapter that has not been trained changes nothing, and a merged
# adapter acts as the live one. OFT was made for text-to-image models, and its
# rotation is the identity at the start.
# Seen: the live adapter cuts the input into 3 x 3 patches, rotates them, and lays
# them back in another order, summed where they overlap. One pixel becomes nine at
# other places, a flat area is 9 times as large, and noise comes out uncorrelated
# with itself. Merged, the same adapter is the identity. So an OFT on the
# convolutions of a UNet trains against this, and samples other images before and
# after `merge_and_unload`. LoRA, LoHa, LoKr, BOFT and HRA start from the layer as
# it is, and so does OFT on 1 x 1.
# What works: name no layer with a larger kernel in `target_modules`, or take BOFT.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0 peft==0.21.2 transformers==5.23.0 \
  accelerate==1.15.0
cd "$folder"
bin/python - 2> errors <<'EOF' || { tail -n 20 errors; exit 1; }
import copy
import sys

import peft
import torch

LAYER = {"target_modules": ["0"]}
METHODS = {
  "LoRA": peft.LoraConfig(**LAYER),
  "LoHa": peft.LoHaConfig(**LAYER),
  "LoKr": peft.LoKrConfig(**LAYER),
  "BOFT": peft.BOFTConfig(boft_block_size=4, **LAYER),
  "HRA": peft.HRAConfig(**LAYER),
  "OFT": peft.OFTConfig(oft_block_size=8, **LAYER),
}


def fresh(config, layer):
  """The layer with an untrained adapter."""
  model = torch.nn.Sequential(copy.deepcopy(layer))
  return peft.get_peft_model(model, copy.deepcopy(config)).eval()


@torch.no_grad()
def changes(config, kernel):
  """How far the fresh adapter is from the layer: live, and merged."""
  torch.manual_seed(0)
  layer = torch.nn.Conv2d(32, 32, kernel, padding=kernel // 2, bias=False)
  images = torch.randn(2, 32, 32, 32)
  right = layer(images)
  model = fresh(config, layer)
  answers = model(images), model.merge_and_unload()(images)
  return [round(float((a - right).norm() / right.norm()), 3) for a in answers]


@torch.no_grad()
def copied(images):
  """The first channel behind a fresh OFT on a kernel that copies each pixel."""
  layer = torch.nn.Conv2d(8, 8, 3, padding=1, bias=False)
  layer.weight.zero_()
  layer.weight[range(8), range(8), 1, 1] = 1
  return fresh(METHODS["OFT"], layer)(images)[0, 0]


print("peft", peft.__version__, "torch", torch.__version__)
print("Expected: a change of 0, live and merged")
seen = {}
for name, config in METHODS.items():
  for kernel in (1, 3):
    live, merged = seen[name, kernel] = changes(config, kernel)
    print(f"{name}, {kernel} x {kernel}: live {live}, merged {merged}")
pixel = torch.zeros(1, 8, 6, 6)
pixel[0, 0, 2, 2] = 1
rows = copied(pixel).int().tolist()
print("OFT on a kernel that copies, one pixel at row 2, column 2:")
print(*rows, sep="\n")
flat = float(copied(torch.ones(1, 8, 6, 6))[2, 2])
noise = torch.randn(1, 8, 64, 64)
alike = torch.corrcoef(torch.stack([copied(noise).ravel(), noise[0, 0].ravel()]))
print(f"a flat area of 1: {flat}; noise: a correlation of {alike[0, 1]:.3f}")
live, merged = seen.pop(("OFT", 3))
same = all(max(both) < 1e-3 for both in seen.values())
same = same and live > 2 and merged == 0 and flat == 9 and alike[0, 1] < 0.1
same = same and rows[2][2] == 0 and sum(map(sum, rows)) == 9
sys.exit(0 if same else "The behaviour changed.")
EOF
