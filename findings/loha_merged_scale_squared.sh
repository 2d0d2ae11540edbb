#!/usr/bin/env bash
# lycoris-lora 4.1.3: merging a LoHa or a LoKr applies alpha / rank twice.
#
# Most expect: `merge_to(1.0)` writes the change into the weights that the adapter
# makes while it is live. With a LoRA it does.
# Seen: a LoHa or LoKr of rank 4 and the default alpha of 1 is merged at a quarter
# of its strength, and one of alpha 8 at twice its strength. `get_diff_weight`
# multiplies by alpha / rank what `get_weight` has multiplied by it. `onfly_merge`
# does the same. An erasure that acts while it is tested is published at a quarter.
# What works: an alpha equal to the rank, or `merge_to(rank / alpha)`.
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
RANK = 4


def merged_share(algo, strength=1.0, merge="merge_to", **words):
  """How much of the live adapter's change the merged weights make."""
  torch.manual_seed(0)
  model = torch.nn.Sequential(torch.nn.Linear(320, 320))
  images = torch.randn(8, 320)
  before = model(images).detach()
  adapter = create_lycoris(model, linear_dim=RANK, algo=algo, **words)
  adapter.apply_to()
  for value in adapter.parameters():
    value.data += 0.1 * torch.randn(value.shape)
  live = model(images).detach() - before
  adapter.restore()
  getattr(adapter, merge)(strength)
  merged = model(images).detach() - before
  share = float((merged * live).sum() / live.square().sum())
  assert (merged - share * live).norm() < 1e-4 * live.norm()
  return round(share, 4)


print("lycoris-lora", version("lycoris-lora"), "torch", torch.__version__)
seen = {}
for algo in ("lora", "loha", "lokr"):
  seen[algo] = [merged_share(algo)]
  seen[algo] += [merged_share(algo, linear_alpha=a) for a in (2, 4, 8)]
  print(f"{algo}: merged share with alpha 1 (default), 2, 4, 8: {seen[algo]}")
print(f"Expected: 1 for each, as the rank is {RANK} live and merged")
onfly = merged_share("loha", merge="onfly_merge")
print("loha, onfly_merge, default alpha:", onfly)
mended = merged_share("loha", strength=RANK), merged_share("lokr", strength=RANK)
print("loha and lokr, merge_to(rank / alpha):", mended)
same = seen["lora"] == [1, 1, 1, 1] and mended == (1, 1)
same = same and seen["loha"] == seen["lokr"] == [0.25, 0.5, 1, 2]
sys.exit(0 if same and onfly == 0.25 else "The behaviour changed.")
EOF
