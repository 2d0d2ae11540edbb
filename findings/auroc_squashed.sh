#!/usr/bin/env bash
# torchmetrics 1.9.0: AUROC depends on the scores' size and on the batches.
#
# Most expect: AUROC depends on the order of the scores alone, so that any
# score of a membership attack may go in as it is.
# Seen: an update with one score outside [0, 1] passes all its scores through a
# float32 sigmoid. Scores of 20 to 40, perfectly apart, all become 1: AUROC
# 0.5 instead of 1. An update whose scores lie within [0, 1] stays as it is, so
# cutting the same scores into two updates gives another AUROC. The sigmoid is
# documented; what follows of it is not.
# What works: give ranks, divided by their number.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0 torchmetrics==1.9.0 \
  scikit-learn==1.9.1
cd "$folder"
bin/python - <<'EOF'
import sys

import sklearn
import torch
import torchmetrics
from sklearn.metrics import roc_auc_score
from torchmetrics.classification import BinaryAUROC


def auroc(*updates):
  metric = BinaryAUROC()
  for scores, members in updates:
    metric.update(scores, members)
  return round(float(metric.compute()), 4)


def right(scores, members):
  return round(float(roc_auc_score(members, scores)), 4)


scores = torch.linspace(20, 40, 1000)
members = (scores > 30).long()
apart = right(scores, members), auroc((scores, members))
ranks = scores.argsort().argsort() / len(scores)
ranked = auroc((ranks, members))
few = torch.tensor([0.1, 0.2, 0.3, 0.9, -5.0, -0.4, -0.3, 0.05])
yes = torch.tensor([0, 0, 1, 1, 0, 0, 0, 0])
whole = right(few, yes), auroc((few, yes))
halves = auroc((few[:4], yes[:4]), (few[4:], yes[4:]))
print("torchmetrics", torchmetrics.__version__, "sklearn", sklearn.__version__)
print("Scores 20 to 40: expected", apart[0], "seen", apart[1])
print("  as ranks:", ranked)
print("Eight scores: expected", whole[0], "seen", whole[1])
print("  in two updates: expected", whole[0], "seen", halves)
same = apart == (1.0, 0.5) and ranked == 1.0
same = same and whole == (1.0, 1.0) and halves == 0.75
sys.exit(0 if same else "The behaviour changed.")
EOF
