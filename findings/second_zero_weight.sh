#!/usr/bin/env bash
# compel 2.5.1: a second word at weight 0 brings the first one half back.
#
# Most expect: a word at weight 0 is out of the prompt, whatever weights the other
# words have, so that a concept's two names can both be taken out.
# Seen: one word at 0 is out. With two of them, each is half in. Compel encodes the
# prompt once without each such word, with all the others present, and takes the
# weighted mean. So what stands beside the words is half of a prompt with the first
# and half of one with the second, and a third word at 0 makes it no better. A word
# at 0.5 acts whole once another one is at 0. Both downweight modes do so.
# What works: leave the words out, or give them as one fragment in brackets.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0 compel==2.5.1 diffusers==0.42.1 \
  transformers==5.23.0
cd "$folder"
bin/python - 2> errors <<'EOF' || { tail -n 20 errors; exit 1; }
import sys
from importlib.metadata import version

import torch
import transformers as tf
from compel import Compel, DownweightMode

LETTERS = [a + end for a in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
TOKENS = {token: i for i, token in enumerate(LETTERS)}
START, END = len(LETTERS), len(LETTERS) + 1
TOKENS |= {"<|startoftext|>": START, "<|endoftext|>": END}
PROMPTS = {
  "one": "a ({})0.0 or kitten in the park",
  "two": "a ({})0.0 or (kitten)0.0 in the park",
  "three": "a ({})0.0 or (kitten)0.0 in the (park)0.0",
  "half": "a ({})0.5 or kitten in the park",
  "half, and one at 0": "a ({})0.5 or (kitten)0.0 in the park",
  "fragment": "a ({} or kitten)0.0 in the park",
}


def encoder():
  torch.manual_seed(0)
  ids = {"bos_token_id": START, "eos_token_id": END, "pad_token_id": END}
  size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}
  config = tf.CLIPTextConfig(
    vocab_size=len(TOKENS), num_attention_heads=4, **size, **ids
  )
  model = tf.CLIPTextModel(config).eval()
  for value in model.parameters():
    if value.ndim > 1:
      value.data *= 5  # So that words attend to each other.
  return model


def depends(mode):
  """How much of a word's influence each prompt keeps: 1 is all of it."""
  tokenizer = tf.CLIPTokenizer(vocab=TOKENS, merges=[], model_max_length=77)
  compel = Compel(tokenizer, encoder(), downweight_mode=mode)

  def moved(prompt):
    change = compel(prompt.format("cat")) - compel(prompt.format("cow"))
    return float(change[0, -30:].norm())  # Padding: none of the words' places.

  whole = moved("a {} or kitten in the park")
  return {name: round(moved(text) / whole, 3) for name, text in PROMPTS.items()}


print("compel", version("compel"), "transformers", tf.__version__)
print("Expected: 0 for a first word at 0.0, and about 0.5 for one at 0.5.")
same = True
for mode in DownweightMode:
  seen = depends(mode)
  for name, share in seen.items():
    print(f"{mode.name}, {PROMPTS[name].format('cat')}: {share}")
  same = same and max(seen["one"], seen["fragment"]) < 0.001
  same = same and 0.45 < seen["two"] < 0.55 and seen["three"] > seen["two"]
  same = same and seen["half"] < 0.6 and seen["half, and one at 0"] > 0.9
sys.exit(0 if same else "The behaviour changed.")
EOF
