#!/usr/bin/env bash
# eval-unlearn 1.1.2 with transformers 5.23.0: a judge that fails gives the best
# possible result.
#
# Most expect: with the detector "clip" the attack success rate is the share of
# images whose similarity with the concept's name is above the threshold. If the
# judge fails, the run fails, or the images are left out.
# Seen: the rate of every model is 0. Since transformers 5, which the package
# requires, CLIP's features come in an object that the detector takes for a tensor.
# The error is caught, and each image of the batch counts as safe. One line of the
# log names it. The report has a rate of 0 from 40 images and no error.
# What works: compare CLIP's own similarities with the threshold.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0 eval-unlearn==1.1.2 \
  diffusers==0.42.1 transformers==5.23.0 datasets==5.2.0 numpy==2.4.0
cd "$folder"
export HF_HOME="$folder/hub"
bin/python - 2> errors <<'EOF' || { tail -n 20 errors; exit 1; }
import csv
import json
import logging
import os
import sys
from importlib.metadata import version

import torch
import transformers as tf
from eval_unlearn.registry import register_technique
from eval_unlearn.runners.single_benchmark_runner import SingleBenchmarkRunner
from PIL import Image

logging.disable(logging.CRITICAL)
JUDGE = "openai/clip-vit-base-patch32"  # Folders of these names are read.
PROMPTS = "AIML-TUDA/i2p"
LETTERS = [a + end for a in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
TOKENS = {token: i for i, token in enumerate(LETTERS)}
TOKENS |= {"<|startoftext|>": 52, "<|endoftext|>": 53}
FIGHT = Image.new("RGB", (8, 8), "red")


def save_judge():
  """Save a tiny CLIP that finds "violence" in a red image, and return it."""
  torch.manual_seed(0)
  size = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16}
  text = {"vocab_size": 54, "bos_token_id": 52, "eos_token_id": 53}
  vision = {"image_size": 8, "patch_size": 4}
  config = {"text_config": size | text, "vision_config": size | vision}
  clip = tf.CLIPModel(tf.CLIPConfig(**config, projection_dim=16)).eval()
  crop = {"height": 8, "width": 8}
  images = tf.CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=crop)
  judge = tf.CLIPProcessor(images, tf.CLIPTokenizer(vocab=TOKENS, merges=[]))
  given = judge(text=["violence"], images=[FIGHT], return_tensors="pt")
  with torch.no_grad():
    seen = clip.vision_model(given["pixel_values"]).pooler_output
    fitted = torch.linalg.pinv(seen) @ clip(**given).text_embeds
    clip.visual_projection.weight.copy_(fitted.T)
    similarity = clip(**given).logits_per_image / clip.logit_scale.exp()
  clip.save_pretrained(JUDGE)
  judge.save_pretrained(JUDGE)
  return similarity.item()


@register_technique("forgot nothing")
class Original:
  def generate(self, prompts, seed):
    return [FIGHT] * len(prompts)


similarity = save_judge()
os.makedirs(PROMPTS)
with open(f"{PROMPTS}/train.csv", "w", newline="") as file:
  rows = [["a fight", "violence"]] * 40
  csv.writer(file).writerows([["prompt", "categories"]] + rows)
config = {"concept_name": "violence", "detector": "clip", "device": "cpu"}
config["clip_model_id"] = JUDGE
run = SingleBenchmarkRunner("forgot nothing", "asr_i2p", metric_config=config)
result = run.run()["metric_result"]
names = "eval-unlearn", "transformers"
print(*(f"{name} {version(name)}" for name in names))
print(f"similarity of every image with the concept: {similarity:.2f}")
print("threshold:", result["details"]["config"]["similarity_threshold"])
print("expected: an attack success rate of 1 from 40 images, or a failure")
print(f"seen: {result['value']} from {result['details']['total_images']} images")
quiet = "error" not in json.dumps(result).lower()
same = similarity > 0.99 and result["value"] == 0 and quiet
sys.exit(0 if same else "The behaviour changed.")
EOF
