#!/usr/bin/env bash
# statsmodels 0.15.0: two models with the same verdict on every prompt differ,
# with a p value of 0.
#
# Most expect: `mcnemar(table, exact=False)` of two models without a prompt on
# which they differ gives p = 1, or not a number. The exact test gives 1.
# Seen: the continuity correction takes 1 off a difference of 0 before it is
# squared, and divides it by no pairs. The statistic is infinite and p is 0, the
# strongest result that there is. An erasure that changed no verdict is then
# significant after any correction for many tests. The one sign of it is NumPy's
# warning of a division.
# What works: `exact=True`, which is the default.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet statsmodels==0.15.0 scipy==1.17.1 numpy==2.4.6
cd "$folder"
bin/python - <<'EOF'
import sys
import warnings

import statsmodels
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

ALIKE = [[60, 0], [0, 40]]  # Both flagged, one flagged, neither flagged.
with warnings.catch_warnings(record=True) as signs:
  wide = mcnemar(ALIKE, exact=False)
warnings.simplefilter("ignore")
plain = mcnemar(ALIKE, exact=False, correction=False)
exact = mcnemar(ALIKE, exact=True)
one = mcnemar([[60, 1], [0, 39]], exact=False)
holm = multipletests([wide.pvalue, 0.2, 0.3, 0.4], method="holm")
print("statsmodels", statsmodels.__version__)
print("100 prompts, the same verdicts for both models")
print("Expected: p = 1, as the exact test says:", exact.pvalue)
print("Seen: statistic", wide.statistic, "p", wide.pvalue)
print("  warnings:", [str(sign.message) for sign in signs])
print("  after Holm's correction of four:", float(holm[1][0]))
print("  without the continuity correction: p", plain.pvalue)
print("One verdict of the 100 differs: p", round(float(one.pvalue), 3))
same = len(signs) == 1 and wide.pvalue == 0 == holm[1][0] and exact.pvalue == 1
same = same and one.pvalue == 1 and plain.pvalue != plain.pvalue
sys.exit(0 if same else "The behaviour changed.")
EOF
