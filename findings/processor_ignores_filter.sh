#!/usr/bin/env bash
# diffusers 0.42.1: `VaeImageProcessor` resizes tensors by nearest neighbour.
#
# Most expect: the setting `resample="lanczos"`, documented as the filter for
# resizing, holds for every kind of input.
# Seen: it holds for PIL images. Tensors and arrays are resized by nearest
# neighbour, so one picture gives two sets of latents, one of them aliased.
# What works: resize before, or pass PIL images.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 \
  pillow==13.0.0 numpy==2.4.6
cd "$folder"
bin/python - <<'EOF'
import sys

import diffusers
import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

# Lines a pixel wide: half the size is an even gray.
rows, columns = np.mgrid[:64, :64]
picture = np.where(columns % 2, 255, 0).astype(np.uint8)
picture = np.repeat(picture[..., None], 3, 2)
processor = VaeImageProcessor(vae_scale_factor=8)
size = {"height": 32, "width": 32}
image = processor.preprocess(Image.fromarray(picture), **size)
tensor = torch.tensor(picture / 255.0).permute(2, 0, 1)[None].float()
kept = processor.preprocess(tensor, **size)
array = processor.preprocess((picture / 255.0)[None].astype("f"), **size)
nearest = tensor[..., ::2, ::2] * 2 - 1
print("diffusers", diffusers.__version__, processor.config.resample)
print("Expected: a mean near 0 (gray of -1 to 1) for each input")
print("Seen: PIL image", round(float(image.mean()), 3))
print("      tensor   ", round(float(kept.mean()), 3))
print("      array    ", round(float(array.mean()), 3))
same = (
  abs(float(image.mean())) < 0.05
  and (kept - nearest).abs().max() < 1e-5
  and (array - kept).abs().max() < 1e-5
)
sys.exit(0 if same else "The behaviour changed.")
EOF
