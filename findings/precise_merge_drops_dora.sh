#!/usr/bin/env bash
# lycoris-lora 4.1.3: the precise merge of a DoRA leaves its magnitudes out.
#
# Most expect: `merge_to(1.0, precise=True)` gives the weights of `merge_to(1.0)`,
# computed in float64 and so closer to the live adapter.
# Seen: with weight decomposition (`dora_wd=True`) only the plain merge gives the
# live adapter. The precise one adds the low-rank change alone, as if no magnitudes
# had been trained. A layer trained to answer 0.3 of what it did answers so live and
# by the plain merge. By the precise one it answers all that it did, without a warning.
# What works: `merge_to(1.0)`, on float64 weights if rounding matters.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0 lycoris-lora==4.1.3
cd "$folder"
bin/python - 2> errors <<'EOF' || { tail -n 20 errors; exit 1; }
import logging
import sys
from importlib.metadata import version

import torch
from lycoris import LycorisNetwork, create_lycoris

logging.disable(logging.CRITICAL)
LycorisNetwork.apply_preset({"target_module": ["Linear"]})
GOAL = 0.3


def answers(dora, **words):
  """The answer's share of the original one: live, and once merged."""
  torch.manual_seed(0)
  model = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False))
  inputs = torch.randn(256, 64)
  original = model(inputs).detach()
  adapter = create_lycoris(
    model, linear_dim=4, linear_alpha=4, algo="lora", dora_wd=dora
  )
  adapter.apply_to()
  optimizer = torch.optim.Adam(adapter.parameters(), 1e-2)
  for _ in range(300):
    optimizer.zero_grad()
    (model(inputs) - GOAL * original).square().mean().backward()
    optimizer.step()

  def share():
    answer = model(inputs).detach()
    return round(float((answer * original).sum() / original.square().sum()), 3)

  live = share()
  adapter.restore()
  adapter.merge_to(1.0, **words)
  return live, share()


print("lycoris-lora", version("lycoris-lora"), "torch", torch.__version__)
print("Expected: merged as live. Seen:")
seen = {}
for name, dora in (("LoRA", False), ("DoRA", True)):
  for kind, words in (("plain", {}), ("precise", {"precise": True})):
    live, merged = seen[name, kind] = answers(dora, **words)
    print(f"{name}: live {live}, {kind} merge {merged}")
live, off = seen.pop(("DoRA", "precise"))
same = all(abs(live - merged) < 1e-3 for live, merged in seen.values())
same = same and abs(live - GOAL) < 0.05 and off > 0.9
sys.exit(0 if same else "The behaviour changed.")
EOF
