#!/usr/bin/env bash
# eval-unlearn 1.1.2: the unlearning accuracy depends on the size of the batches.
#
# Most expect: UA is the share of forgotten images among those of the target's
# prompts, and IRA the share of kept ones among those of the retained prompts. How
# many prompts go through the network at once changes neither.
# Seen: each batch's images before the place where the target's prompts end in the
# whole list count as the target's. With 50 + 50 prompts in the default batches of 32
# these are all 100. A model that forgot nothing has a UA of 0.5 in place of 0, and
# the best possible model has an IRA of 0 in place of 1. No warning says so.
# What works: a `batch_size` of all prompts of both lists together.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0 eval-unlearn==1.1.2 \
  diffusers==0.42.1 transformers==5.23.0 datasets==5.2.0 numpy==2.4.0
cd "$folder"
bin/python - 2> errors <<'EOF' || { tail -n 20 errors; exit 1; }
import csv
import logging
import sys
from importlib.metadata import version

import torch
import transformers as tf
from eval_unlearn.registry import register_technique
from eval_unlearn.runners.single_benchmark_runner import SingleBenchmarkRunner
from PIL import Image

logging.disable(logging.CRITICAL)
JUDGE = "openai/clip-vit-base-patch32"  # A folder of this name is read.
LETTERS = [a + end for a in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
TOKENS = {token: i for i, token in enumerate(LETTERS)}
TOKENS |= {"<|startoftext|>": 52, "<|endoftext|>": 53}


def save_judge():
  """Save a tiny CLIP, fitted to tell a red image from a blue one."""
  torch.manual_seed(0)
  size = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16}
  text = {"vocab_size": 54, "bos_token_id": 52, "eos_token_id": 53}
  vision = {"image_size": 8, "patch_size": 4}
  config = {"text_config": size | text, "vision_config": size | vision}
  clip = tf.CLIPModel(tf.CLIPConfig(**config, projection_dim=16)).eval()
  crop = {"height": 8, "width": 8}
  images = tf.CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=crop)
  judge = tf.CLIPProcessor(images, tf.CLIPTokenizer(vocab=TOKENS, merges=[]))
  squares = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
  texts = ["Image of red", "Image of blue"]
  given = judge(text=texts, images=squares, return_tensors="pt", padding=True)
  with torch.no_grad():
    seen = clip.vision_model(given["pixel_values"]).pooler_output
    fitted = torch.linalg.pinv(seen) @ clip(**given).text_embeds
    clip.visual_projection.weight.copy_(fitted.T)
  clip.save_pretrained(JUDGE)
  judge.save_pretrained(JUDGE)


@register_technique("forgot nothing")
class Original:
  def generate(self, prompts, seed):
    return [Image.new("RGB", (8, 8), prompt.split()[1]) for prompt in prompts]


@register_technique("forgot red alone")
class Unlearned:
  def generate(self, prompts, seed):
    return [Image.new("RGB", (8, 8), "blue") for _ in prompts]


def scores(technique, **words):
  lists = {"target_prompts_path": "red.csv", "retain_prompts_path": "blue.csv"}
  names = {"target_concept": "red", "retain_concept": "blue", "device": "cpu"}
  config = {"clip_model_name": JUDGE} | lists | names | words
  run = SingleBenchmarkRunner(technique, "ua_ira", metric_config=config, seed=0)
  details = run.run()["metric_result"]["details"]
  return details["ua_score"], details["ira_score"]


save_judge()
for colour in ("red", "blue"):
  with open(f"{colour}.csv", "w", newline="") as file:
    csv.writer(file).writerows([["prompt"]] + [[f"a {colour} square"]] * 50)
print("eval-unlearn", version("eval-unlearn"))
seen = []
for name in ("forgot nothing", "forgot red alone"):
  seen += [scores(name, batch_size=100), scores(name)]
  print(f"{name}: (UA, IRA) with batches of 100: {seen[-2]}, of 32: {seen[-1]}")
print("expected: the same with both")
same = seen == [(0, 1), (0.5, 0), (1, 1), (1, 0)]
sys.exit(0 if same else "The behaviour changed.")
EOF
