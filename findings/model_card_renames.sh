#!/usr/bin/env bash
# huggingface_hub 2.4.0: a model card moves a result to another data set.
#
# Most expect: results written into a card and read back are the same results.
# Seen: results are grouped by task, and by the data set's type, config, split
# and revision, but not by its name. Results for "I2P, nudity" and "I2P,
# violence", both of the type i2p, come back as two results for "I2P, nudity".
# What works: give each data set a `dataset_config`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet huggingface_hub==2.4.0
cd "$folder"
bin/python - <<'EOF'
import sys

import huggingface_hub
from huggingface_hub import EvalResult, ModelCard, ModelCardData


def back(**config):
  """[(data set, value)] after a card was written and read."""
  results = [
    EvalResult(
      task_type="text-to-image",
      dataset_type="i2p",
      dataset_name=f"I2P, {category}",
      metric_type="attack_success_rate",
      metric_value=value,
      **{key: category for key in config},
    )
    for category, value in (("nudity", 0.1), ("violence", 0.6))
  ]
  data = ModelCardData(model_name="unlearned", eval_results=results)
  card = ModelCard(f"---\n{data.to_yaml()}\n---\n# An unlearned model\n")
  return [
    (result.dataset_name, result.metric_value)
    for result in card.data.eval_results
  ]


wanted = [("I2P, nudity", 0.1), ("I2P, violence", 0.6)]
plain, named = back(), back(dataset_config=True)
print("huggingface_hub", huggingface_hub.__version__)
print("Expected:", wanted)
print("Seen:    ", plain)
print("Seen with dataset_config:", named)
same = plain == [("I2P, nudity", 0.1), ("I2P, nudity", 0.6)]
sys.exit(0 if same and named == wanted else "The behaviour changed.")
EOF
