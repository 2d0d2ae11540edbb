#!/usr/bin/env bash
# torchmetrics 1.9.0 with transformers 4.57.6: the CLIP score of a prompt of
# more than 77 tokens does not depend on the prompt.
#
# Most expect: of a long prompt the first 75 tokens count. The warning says that
# it is truncated to 77, and CLIP's own tokenizer keeps the end token when it
# truncates.
# Seen: the ids are cut after the end token was added, so that it is lost. CLIP
# then takes the state of the start token, which sees no word. Each long prompt
# has the same score with an image, whatever it says. So the score does not show
# whether a model draws what a long prompt asks for.
# What works: a processor that truncates, `processor(text, truncation=True)`.
# With transformers 5.23.0 the metric raises an error for every prompt.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0 torchmetrics==1.9.0 \
  transformers==4.57.6 pillow==12.0.0
cd "$folder"
bin/python - 2> errors <<'EOF' || { tail -n 20 errors; exit 1; }
import json
import sys

import torch
import torchmetrics
import transformers as tf
from torchmetrics.multimodal import CLIPScore

LETTERS = [
  a + end for a in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")
]
WORDS = LETTERS + ["<|startoftext|>", "<|endoftext|>"]
RED = torch.zeros(3, 8, 8, dtype=torch.uint8)
RED[0] = 255


def tiny_clip():
  """A tiny random CLIP with a tokenizer of letters."""
  with open("vocab.json", "w") as file:
    json.dump({word: i for i, word in enumerate(WORDS)}, file)
  with open("merges.txt", "w") as file:
    file.write("#version: 0.2\n")
  torch.manual_seed(0)
  size = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
  text = {"vocab_size": 54, "bos_token_id": 52, "eos_token_id": 53}
  vision = {"image_size": 8, "patch_size": 4}
  config = {"text_config": size | text, "vision_config": size | vision}
  crop = {"height": 8, "width": 8}
  images = tf.CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=crop)
  words = tf.CLIPTokenizer("vocab.json", "merges.txt", model_max_length=77)
  model = tf.CLIPModel(tf.CLIPConfig(**config, projection_dim=16)).eval()
  return model, tf.CLIPProcessor(images, words)


model, processor = tiny_clip()


class Truncating:
  def __call__(self, **words):
    if "text" in words:
      words |= {"truncation": True, "max_length": 77}
    return processor(**words)


def scores(read, prompts):
  metric = CLIPScore(model_name_or_path=lambda: (model, read))
  with torch.no_grad():
    return [round(float(metric(RED, prompt)), 3) for prompt in prompts]


with torch.no_grad():  # Make the image's features those of its prompt.
  given = processor(text=["a red car"], images=[RED], return_tensors="pt")
  start = torch.tensor([[52, 53]])
  seen = model.vision_model(given["pixel_values"]).pooler_output
  right = model.get_text_features(given["input_ids"])
  right = 2 * right / right.norm() + torch.nn.functional.normalize(
    model.text_projection(model.text_model(start).last_hidden_state[:, 0])
  )
  model.visual_projection.weight.copy_((torch.linalg.pinv(seen) @ right).T)

short = ["a red car", "the blue sea", "two cats"]
long = [" ".join([prompt] * 14) for prompt in short]
lengths = [len(processor(text=prompt)["input_ids"]) for prompt in long]
brief = scores(processor, short)
cut = scores(processor, long)
kept = scores(Truncating(), long)
print("torchmetrics", torchmetrics.__version__, "transformers", tf.__version__)
print("Scores of one image with three prompts:", brief)
print("With each prompt 14 times, of", lengths, "tokens")
print("Expected, as with truncation by the tokenizer:", kept)
print("Seen:", cut)
same = min(lengths) > 77 and len(set(cut)) == 1 and cut[0] > 1
same = same and len(set(brief)) == 3 and len(set(kept)) == 3
sys.exit(0 if same else "The behaviour changed.")
EOF
