#!/usr/bin/env bash
# peft 0.21.2: orthogonal finetuning by default is not orthogonal.
#
# Most expect: OFT turns weights and keeps their singular values; the class's
# documentation says that the exact Cayley transform is the default.
# Seen: `use_cayley_neumann` is on by default and sums five terms of a series,
# which holds for small entries alone. In blocks of 32, random entries of 0.05
# shrink some direction by 7 %, of 0.1 by 93 %, and of 0.2 stretch another 16
# times. A merged file carries this.
# What works: `OFTConfig(use_cayley_neumann=False)`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 peft==0.21.2 \
  transformers==5.23.0 accelerate==1.15.0 safetensors==0.8.0
cd "$folder"
bin/python - <<'EOF'
import re
import sys

import peft
import torch
from peft import OFTConfig, get_peft_model


def singular(size, **words):
  """The least and the greatest singular value of the rotation."""
  torch.manual_seed(0)
  model = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False))
  torch.nn.init.eye_(model[0].weight)
  model = get_peft_model(
    model, OFTConfig(oft_block_size=32, target_modules=["0"], **words)
  )
  for name, value in model.named_parameters():
    if "oft_R" in name:
      value.data = torch.randn(value.shape) * size
  merged = model.merge_and_unload()[0].weight.detach()
  values = torch.linalg.svdvals(merged)
  return round(float(values.min()), 3), round(float(values.max()), 3)


said = re.search(
  r"use_cayley_neumann \(bool\).*?Default is `(\w+)`", OFTConfig.__doc__, re.S
)[1]
default = OFTConfig().use_cayley_neumann
print("peft", peft.__version__, "torch", torch.__version__)
print("Default of use_cayley_neumann: documented", said, "- seen", default)
print("Expected: singular values of 1.0 to 1.0")
seen = {}
for size in (0.01, 0.05, 0.1, 0.2):
  seen[size] = singular(size)
  exact = singular(size, use_cayley_neumann=False)
  print(f"Seen, entries of {size}: {seen[size]}; exact transform: {exact}")
same = (
  said == "False"
  and default is True
  and seen[0.1][0] < 0.8
  and seen[0.2][1] > 2
  and abs(exact[1] - 1) < 1e-2
)
sys.exit(0 if same else "The behaviour changed.")
EOF
