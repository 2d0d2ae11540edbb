#!/usr/bin/env bash
# diffusers 0.42.1: an average of half-precision weights never moves.
#
# Most expect: `EMAModel(decay=0.9999)` follows the weights in any dtype, and
# float16 or bfloat16 cost some digits.
# Seen: each step adds 1/10000 of the distance, in the weights' dtype. That is
# less than half of their last digit, so the average keeps its first value for
# ever: what is saved as the average is the untrained model. In float32 it is
# 86 % of the way after 20000 steps.
# What works: keep the averaged parameters in float32.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1
cd "$folder"
bin/python - <<'EOF'
import sys

import diffusers
import torch
from diffusers.training_utils import EMAModel


def average(dtype):
  """The average of a weight that jumped from 1 to 1.5, 20000 steps later."""
  weight = torch.nn.Parameter(torch.ones(1, dtype=dtype))
  ema = EMAModel([weight], decay=0.9999)
  # The decay starts low and has grown to 0.9999 by now.
  ema.optimization_step = 200_000
  weight.data.fill_(1.5)
  for _ in range(20_000):
    ema.step([weight])
  return round(float(ema.shadow_params[0]), 4)


full = average(torch.float32)
seen = average(torch.bfloat16), average(torch.float16)
print("diffusers", diffusers.__version__, "torch", torch.__version__)
print("Expected: about", full, "in each dtype (seen in float32)")
print("Seen in bfloat16 and float16:", seen)
same = full > 1.4 and seen == (1.0, 1.0)
sys.exit(0 if same else "The behaviour changed.")
EOF
