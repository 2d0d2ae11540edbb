#!/usr/bin/env bash
# statsmodels 0.15.0 and scipy 1.17.1: one-sided intervals name opposite sides.
#
# Most expect: `alternative="larger"` of statsmodels is `"greater"` of scipy: a
# lower bound, the interval that belongs to the test of "greater".
# Seen: statsmodels gives (0, bound) for "larger", scipy (bound, 1) for
# "greater". "At most x of the attacks succeed" turns into "at least x" when a
# script changes from one to the other. The documentation names no side.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet statsmodels==0.15.0 scipy==1.17.1
cd "$folder"
bin/python - <<'EOF'
import sys

import scipy
import statsmodels
from scipy.stats import binomtest
from statsmodels.stats.proportion import proportion_confint

successes, attacks = 8, 10


def theirs(side):
  bounds = proportion_confint(
    successes, attacks, method="beta", alternative=side
  )
  return [round(float(bound), 4) for bound in bounds]


def right(side):
  bounds = binomtest(successes, attacks, alternative=side).proportion_ci()
  return [round(float(bound), 4) for bound in bounds]


print("statsmodels", statsmodels.__version__, "scipy", scipy.__version__)
print("Clopper-Pearson, 95 %,", successes, "of", attacks)
print("two-sided:", theirs("two-sided"), right("two-sided"))
print("Expected of 'larger' (scipy's 'greater'):", right("greater"))
print("Seen of 'larger':                        ", theirs("larger"))
print("Expected of 'smaller' (scipy's 'less'):  ", right("less"))
print("Seen of 'smaller':                       ", theirs("smaller"))
same = (
  theirs("two-sided") == right("two-sided")
  and theirs("larger") == right("less") != right("greater")
  and theirs("smaller") == right("greater")
)
sys.exit(0 if same else "The behaviour changed.")
EOF
