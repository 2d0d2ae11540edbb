#!/usr/bin/env bash
# jax 0.10.2: `fold_in(key, i)` is `split(key, n)[i]`.
#
# Most expect: two ways to make keys of one key give unrelated keys, so a
# program may fold the number of a row into a key and split the same key for
# something else.
# Seen: the keys are equal bit for bit, for every i and n. The latents of row 0
# and of row 1 then repeat the draws that `split(key)` serves elsewhere. With
# `jax_threefry_partitionable` off, as it was before jax 0.5, they differ. The
# maintainers mean it; the documentation of neither function says it.
# What works: split once, and fold numbers into one of the parts.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu bin/python - <<'EOF'
import sys

import jax
import numpy as np


def equal():
  """How many of some rows' keys are also keys of a split."""
  count = 0
  for seed in (0, 7):
    key = jax.random.key(seed)
    for total in (2, 5, 50):
      parts = jax.random.key_data(jax.random.split(key, total))
      folded = [
        jax.random.key_data(jax.random.fold_in(key, row))
        for row in range(total)
      ]
      count += int((np.stack(folded) == np.asarray(parts)).all(1).sum())
  return count


key = jax.random.key(0)
ours, theirs = jax.random.split(key)
latents = jax.random.normal(jax.random.fold_in(key, 1), (2, 2))
other = jax.random.normal(theirs, (2, 2))
now = equal()
jax.config.update("jax_threefry_partitionable", False)
before = equal()
print("jax", jax.__version__)
print("Expected: 0 of 114 keys are equal.")
print("Seen:", now, "are equal; without jax_threefry_partitionable", before)
print("The noise of row 1:", latents.tolist())
print("The noise of split(key)[1]:", other.tolist())
same = now == 114 and before == 0 and (latents == other).all()
sys.exit(0 if same else "The behaviour changed.")
EOF
