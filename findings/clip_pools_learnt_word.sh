#!/usr/bin/env bash
# transformers 5.23.0: with a learnt word in the prompt, CLIP's pooled text is
# the learnt word's state.
#
# Most expect: `pooler_output`, and so `get_text_features`, is the state at the
# end of the text, as documented ("EOS token").
# Seen: configs with `eos_token_id` 2, as those of CLIP ViT-L/14 and Stable
# Diffusion 1.x, take the place of the highest id. That is the end of the text
# until textual inversion adds an id above it. A CLIP score of a prompt with a
# learnt word then does not see what follows the word.
# What works: set the config's `eos_token_id` to 49407.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0
cd "$folder"
bin/python - <<'EOF'
import sys

import torch
import transformers
from transformers import CLIPTextConfig, CLIPTextModel

START, END, LEARNT = 98, 99, 100


def pooled(eos_token_id, *tails):
  """Where the pooled state stands, and how far the tails move it."""
  torch.manual_seed(0)
  model = CLIPTextModel(
    CLIPTextConfig(
      vocab_size=100,
      hidden_size=32,
      intermediate_size=64,
      num_hidden_layers=2,
      num_attention_heads=4,
      bos_token_id=START,
      eos_token_id=eos_token_id,
    )
  ).eval()
  model.resize_token_embeddings(101)
  with torch.no_grad():
    answers = [
      model(torch.tensor([[START, 5, LEARNT, *tail, END, END]]))
      for tail in tails
    ]
  states = answers[0].last_hidden_state[0] - answers[0].pooler_output
  moved = (answers[0].pooler_output - answers[1].pooler_output).norm()
  return int(states.norm(dim=-1).argmin()), round(float(moved), 4)


seen = pooled(2, (6, 7), (8, 9))
right = pooled(END, (6, 7), (8, 9))
print("transformers", transformers.__version__)
print("Ids: start, 5, learnt word, two words, end, end")
print("Expected: place 5, moved by other words at the end:", right)
print("Seen with eos_token_id 2:                          ", seen)
same = seen == (2, 0.0) and right[0] == 5 and right[1] > 0.01
sys.exit(0 if same else "The behaviour changed.")
EOF
