#!/usr/bin/env bash
# peft 0.21.2: the "linear" combination of LoRAs is not their sum.
#
# Most expect: `add_weighted_adapter(..., combination_type="linear")` gives the
# weighted sum of what the adapters do, as `set_adapters` of diffusers does.
# Seen: the two factors are summed apart, so that the product holds what the
# one's A does with the other's B. Two unrelated adapters are as far from their
# sum as that sum is from nothing.
# What works: "cat", or "svd" with the ranks' sum, give the sum.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 peft==0.21.2 \
  transformers==5.23.0 accelerate==1.15.0 safetensors==0.8.0
cd "$folder"
bin/python - <<'EOF'
import sys
import warnings

import peft
import torch
from peft import LoraConfig, get_peft_model

warnings.simplefilter("ignore")
torch.manual_seed(0)
config = LoraConfig(r=4, lora_alpha=4, target_modules=["0"])
model = get_peft_model(
  torch.nn.Sequential(torch.nn.Linear(64, 64)), config, adapter_name="erasure"
)
model.add_adapter("style", config)
for name, value in model.named_parameters():
  if "lora_" in name:
    value.data = torch.randn(value.shape)
layer = model.base_model.model[0]
change = layer.get_delta_weight
seen = {}
for kind, words in (("linear", {}), ("cat", {}), ("svd", {"svd_rank": 8})):
  for weights in ([1.0, 1.0], [1.0, -1.0]):
    name = f"{kind}_{'minus' if weights[1] < 0 else 'plus'}"
    model.add_weighted_adapter(
      ["erasure", "style"], weights, name, combination_type=kind, **words
    )
    total = weights[0] * change("erasure") + weights[1] * change("style")
    seen[name] = float(((change(name) - total).norm() / total.norm()).detach())
print("peft", peft.__version__, "torch", torch.__version__)
print("Expected: a relative distance of 0 from the weighted sum.")
for name, distance in seen.items():
  print(f"Seen: {name:13}{distance:.6f}")
same = all(
  (distance > 0.5) == name.startswith("linear")
  and (distance > 0.5 or distance < 1e-4)
  for name, distance in seen.items()
)
sys.exit(0 if same else "The behaviour changed.")
EOF
