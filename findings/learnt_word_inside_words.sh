#!/usr/bin/env bash
# diffusers 0.42.1, transformers 5.23.0: a learnt word is read inside other
# words.
#
# Most expect: `load_textual_inversion` under the name "monet" changes prompts
# with the word "monet", and no others.
# Seen: "monetary" is cut into the learnt word and "ary", and "Monet" is the
# learnt word as well. If the word has several vectors, all of them go into
# "monetary". So an attack by a learnt word also moves prompts of what should be
# kept.
# What works: a name in angle brackets, "<monet>".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1 \
  transformers==5.23.0 accelerate==1.15.0 safetensors==0.8.0
cd "$folder"
bin/python - 2> errors <<'EOF' || { tail -n 20 errors; exit 1; }
import sys
from importlib.metadata import version

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

LETTERS = [
  a + end for a in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")
]
TOKENS = {token: i for i, token in enumerate(LETTERS)}
TOKENS |= {"<|startoftext|>": 52, "<|endoftext|>": 53}
PROMPTS = "monetary policy", "by Monet", "policy"


def text_parts():
  """A pipeline with a tiny random text encoder, and a tokenizer of letters."""
  torch.manual_seed(0)
  size = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
  ends = {"bos_token_id": 52, "eos_token_id": 53}
  encoder = CLIPTextModel(
    CLIPTextConfig(vocab_size=54, intermediate_size=32, **size, **ends)
  ).eval()
  words = CLIPTokenizer(vocab=TOKENS, merges=[], model_max_length=77)
  rest = dict.fromkeys(["unet", "vae", "safety_checker", "feature_extractor"])
  return StableDiffusionPipeline(
    text_encoder=encoder, tokenizer=words, scheduler=DDIMScheduler(), **rest
  )


def encode(pipe, prompt):
  with torch.no_grad():
    return pipe.encode_prompt(prompt, "cpu", 1, False)[0]


def moved(name, vectors):
  """How far a learnt word moves each prompt, and how the first is read."""
  learnt = torch.randn(vectors, 16, generator=torch.Generator().manual_seed(1))
  before, after = text_parts(), text_parts()
  after.load_textual_inversion({name: learnt})
  ways = []
  for prompt in PROMPTS:
    old, new = encode(before, prompt), encode(after, prompt)
    ways.append(round(float((new - old).norm() / old.norm()), 2))
  words = after.tokenizer
  return ways, words.tokenize(after.maybe_convert_prompt("monetary", words))


bare, read = moved("monet", 1)
double, read_double = moved("monet", 2)
bracketed, _ = moved("<monet>", 1)
print(
  "diffusers", version("diffusers"), "transformers", version("transformers")
)
print("Prompts:", PROMPTS)
print("Expected of a word learnt as monet: changes of 0, some, 0")
print("Seen:", bare, '"monetary" is', read)
print("With two vectors:", double, read_double)
print("Learnt as <monet>:", bracketed)
same = min(bare[0], double[0], bare[1]) > 0.1 and bare[2] == double[2] == 0
same = same and read == ["monet", "a", "r", "y</w>"]
same = same and "monet_1" in read_double and bracketed == [0.0, 0.0, 0.0]
sys.exit(0 if same else "The behaviour changed.")
EOF
