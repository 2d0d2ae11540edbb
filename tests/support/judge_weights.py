"""Folders as judges are published, with random weights: small, or full size.

torch and transformers write them, so that names and layouts are theirs.
"""

import json
import pathlib
import pickle
import shutil

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOKENIZER = ROOT / "unlearning_jax/shapes/assets/model/tokenizer"
CLIP_FOLDERS = {"b32": "clip-vit-base-patch32", "l14": "clip-vit-large-patch14"}


def _tower(width, layers, heads, **more):
  return {
    "hidden_size": width,
    "intermediate_size": 4 * width,
    "num_hidden_layers": layers,
    "num_attention_heads": heads,
    **more,
  }


# Width of the vectors, text tower, image tower; of OpenAI's as published.
CLIP_SIZES = {
  "small": (
    24,
    _tower(32, 2, 4),
    _tower(48, 3, 4, patch_size=16, image_size=64),
  ),
  "b32": (
    512,
    _tower(512, 12, 8),
    _tower(768, 12, 12, patch_size=32, image_size=224),
  ),
  "l14": (
    768,
    _tower(768, 12, 12),
    _tower(1024, 24, 16, patch_size=14, image_size=224),
  ),
}


def clip(folder, tower, size="small", **vision):
  """Writes an OpenAI CLIP's folder; returns torch's model."""
  import torch
  import transformers

  vocabulary = json.loads((TOKENIZER / "vocab.json").read_text())
  width, text, image = CLIP_SIZES[size]
  text = text | {"vocab_size": len(vocabulary)}
  # The end of the text, as OpenAI's folders have it: the highest id.
  text |= {"eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1}
  config = transformers.CLIPConfig(
    text_config=text, vision_config=image | vision, projection_dim=width
  )
  torch.manual_seed(0)
  model = transformers.CLIPModel(config).eval()
  with torch.no_grad():
    for name, value in model.named_parameters():
      # Biases and norms start as zeros and ones, which would test nothing.
      if value.ndim == 1:
        value.add_(0.1 * torch.randn_like(value))
      elif "embedding" in name:
        value.add_(0.5 * torch.randn_like(value))
    model.logit_scale.fill_(np.log(30.0))
  path = folder / CLIP_FOLDERS[tower]
  model.save_pretrained(path)
  for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
    shutil.copy(TOKENIZER / name, path / name)
  return model


def q16(folder, width=24):
  """Writes two vectors as Q16 does; returns them."""
  vectors = np.random.default_rng(1).normal(size=(2, width))
  (folder / "q16").mkdir()
  with open(folder / "q16/prompts.p", "wb") as file:
    pickle.dump(vectors.astype(np.float16), file)
  return vectors.astype(np.float16)


def all_small(folder):
  """Everything that the shipped judges need."""
  clip(folder, "b32")
  clip(folder, "l14")
  q16(folder)
