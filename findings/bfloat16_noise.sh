#!/usr/bin/env bash
# jax 0.10.2: `jax.random.normal` in bfloat16 has 128 values and no tails.
#
# Most expect: float32's normal numbers, rounded to bfloat16.
# Seen: the uniform draw below has the 7 bits of bfloat16's fraction, so there
# are 128 different numbers, none beyond -2.9 and 2.6, and the mean is -0.012.
# float16 has 1024, up to 3.5. Noise drawn in the latents' dtype trains a
# diffusion model on other noise than it samples from.
# What works: draw in float32 and cast.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu bin/python - <<'EOF'
import sys

import jax
import jax.numpy as jnp
import numpy as np

key, count = jax.random.key(0), 1_000_000


def summary(noise):
  noise = np.asarray(noise.astype(jnp.float32), np.float64)
  return (
    len(np.unique(noise)),
    round(float(noise.min()), 3),
    round(float(noise.max()), 3),
    round(float(noise.mean()), 4),
  )


cast = jax.random.normal(key, (count,)).astype(jnp.bfloat16)
right = summary(cast)
drawn = summary(jax.random.normal(key, (count,), jnp.bfloat16))
half = summary(jax.random.normal(key, (count,), jnp.float16))
print("jax", jax.__version__, "of", count, "numbers:")
print("different values, least, greatest, mean")
print("Expected (float32, cast):", right)
print("Seen in bfloat16:        ", drawn)
print("Seen in float16:         ", half)
same = (
  right[0] > 1000
  and right[2] > 4
  and drawn[0] == 128
  and drawn[1] > -3
  and drawn[2] < 3
  and half[0] == 1024
)
sys.exit(0 if same else "The behaviour changed.")
EOF
