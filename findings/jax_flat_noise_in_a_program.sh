#!/usr/bin/env bash
# jax 0.12.0.1 on a CPU: noise that is drawn flat and then reshaped is not the
# same inside `jax.jit` as outside of it.
#
# Latents of Stable Diffusion end in an axis of 4. In jax 0.12 the last bit of
# some 4 % of `jax.random.normal`'s numbers depends on the shape's last axis.
# Most expect: whoever draws a flat vector and reshapes it is safe.
# Seen: outside `jit` that is so. Inside, XLA moves the reshape to before the
# arithmetic, and the numbers are those of the short axis again.
# What works: `jax.lax.optimization_barrier` between draw and reshape.
# jax 0.11.2 gives one and the same noise in all these ways.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${PYTHON:-python3.12}
cat > "$folder/draw.py" <<'EOF'
import math
import sys

import jax
import numpy as np

SHAPE = (64, 64, 4)
KEY = jax.random.key(7)


def flat(key):
  return jax.random.normal(key, (math.prod(SHAPE),))


def barred(key):
  return jax.lax.optimization_barrier(flat(key)).reshape(SHAPE)


outside = np.asarray(jax.jit(flat)(KEY)).reshape(SHAPE)
ways = {
  "drawn in its shape": lambda key: jax.random.normal(key, SHAPE),
  "drawn flat, reshaped in the program": lambda key: flat(key).reshape(SHAPE),
  "with a barrier between": barred,
}
seen = []
print(f"jax {jax.__version__}: share of numbers that differ from flat noise")
for name, way in ways.items():
  drawn = np.asarray(jax.jit(way)(KEY))
  seen.append(float((drawn != outside).mean()))
  print(
    f"  {name}: {seen[-1]:.4f}, by at most {abs(drawn - outside).max():.1e}"
  )
if jax.__version__.startswith("0.11"):
  sys.exit(seen != [0.0, 0.0, 0.0])
sys.exit(not (seen[0] == seen[1] > 0.03 and seen[2] == 0))
EOF
for version in 0.11.2 0.12.0.1; do
  "$python" -m venv "$folder/$version"
  "$folder/$version/bin/pip" install --quiet "jax==$version" numpy==2.4.6
  "$folder/$version/bin/python" "$folder/draw.py"
done
