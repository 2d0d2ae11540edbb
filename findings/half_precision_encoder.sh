#!/usr/bin/env bash
# diffusers 0.42.1 with transformers 5.23.0: a pipeline saved in float16 loads
# in two precisions.
#
# Most expect: `from_pretrained(folder)` gives one dtype: float32, the default
# of diffusers, or float16, as saved.
# Seen: UNet and VAE come in float32, and the text encoder in float16, since
# transformers 5 takes a file's own dtype. The pipeline casts the context to
# the UNet's dtype, so it runs without a word, with a context in half
# precision.
# What works: `from_pretrained(folder, torch_dtype=torch.float32)`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 \
  transformers==5.23.0 accelerate==1.15.0 safetensors==0.8.0
cd "$folder"
bin/python - <<'EOF'
import json
import logging
import pathlib
import sys
import tempfile

import diffusers
import torch
import transformers
from diffusers import (
  AutoencoderKL,
  DDIMScheduler,
  StableDiffusionPipeline,
  UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

logging.disable(logging.WARNING)
words = tempfile.mkdtemp()
letters = [chr(c) for c in range(33, 127)]
vocabulary = [
  *letters,
  *(c + "</w>" for c in letters),
  "<|startoftext|>",
  "<|endoftext|>",
]
numbers = {word: index for index, word in enumerate(vocabulary)}
pathlib.Path(words, "vocab.json").write_text(json.dumps(numbers))
pathlib.Path(words, "merges.txt").write_text("#version: 0.2\n")
torch.manual_seed(0)
pipe = StableDiffusionPipeline(
  vae=AutoencoderKL(norm_num_groups=4, block_out_channels=(8,)),
  text_encoder=CLIPTextModel(
    CLIPTextConfig(
      vocab_size=len(vocabulary),
      hidden_size=16,
      intermediate_size=32,
      num_hidden_layers=2,
      num_attention_heads=2,
      bos_token_id=numbers["<|startoftext|>"],
      eos_token_id=numbers["<|endoftext|>"],
    )
  ),
  tokenizer=CLIPTokenizer(
    words + "/vocab.json", words + "/merges.txt", model_max_length=77
  ),
  unet=UNet2DConditionModel(
    sample_size=8,
    block_out_channels=(16,),
    layers_per_block=1,
    cross_attention_dim=16,
    down_block_types=("CrossAttnDownBlock2D",),
    up_block_types=("CrossAttnUpBlock2D",),
    attention_head_dim=4,
    norm_num_groups=4,
  ),
  scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
  safety_checker=None,
  feature_extractor=None,
  requires_safety_checker=False,
)
pipe.to(torch.float16)
saved = tempfile.mkdtemp()
pipe.save_pretrained(saved)


def parts(pipe):
  return [
    str(getattr(pipe, name).dtype) for name in ("unet", "vae", "text_encoder")
  ]


def draw(pipe):
  pipe.set_progress_bar_config(disable=True)
  return pipe(
    "a cat",
    num_inference_steps=2,
    height=8,
    width=8,
    output_type="latent",
    generator=torch.Generator().manual_seed(0),
  ).images


plain = StableDiffusionPipeline.from_pretrained(saved)
named = StableDiffusionPipeline.from_pretrained(
  saved, torch_dtype=torch.float32
)
moved = float((draw(plain) - draw(named)).abs().max())
print("diffusers", diffusers.__version__, "torch", torch.__version__)
print("transformers", transformers.__version__)
print("Expected: one dtype for UNet, VAE and text encoder.")
print("Seen by default:       ", parts(plain))
print("Seen with torch_dtype: ", parts(named))
print("The drawn latents differ by", moved, "though the files are the same.")
same = parts(plain) == ["torch.float32", "torch.float32", "torch.float16"]
same = same and len(set(parts(named))) == 1 and moved > 0
sys.exit(0 if same else "The behaviour changed.")
EOF
