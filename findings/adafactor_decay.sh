#!/usr/bin/env bash
# optax 0.2.8: the weight decay of `adafactor` does not know the learning rate.
#
# Most expect: a `weight_decay_rate` of 0.01 acts as `weight_decay` of `adamw`
# does, multiplied by the learning rate, so that 100 steps at 1e-3 take a
# thousandth off a weight, and a learning rate of 0 changes nothing.
# Seen: each step takes 0.01 of the weight, whatever the learning rate. 100
# steps leave 0.37 of a weight without a gradient, also at a learning rate of 0,
# as at the start of a warmup or the end of a schedule. What a short fine-tuning
# seems to have erased may be what the decay took from every layer.
# What works: `weight_decay_rate=lambda step: 0.01 * learning_rate(step)`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet optax==0.2.8 jax==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu bin/python - <<'EOF'
import sys

import jax.numpy as jnp
import optax


def left(optimizer):
  """What 100 steps without a gradient leave of a weight of 1."""
  weight, gradient = jnp.ones(4), jnp.zeros(4)
  state = optimizer.init(weight)
  for _ in range(100):
    change, state = optimizer.update(gradient, state, weight)
    weight = optax.apply_updates(weight, change)
  return round(float(weight[0]), 4)


seen = {
  rate: (
    left(optax.adamw(rate, weight_decay=0.01)),
    left(optax.adafactor(rate, weight_decay_rate=0.01)),
  )
  for rate in (1e-3, 1e-5, 0.0)
}
scaled = left(optax.adafactor(1e-3, weight_decay_rate=lambda step: 0.01 * 1e-3))
print("optax", optax.__version__)
print("What 100 steps of decay 0.01 leave of a weight without a gradient:")
for rate, (adamw, adafactor) in seen.items():
  print(f"  learning rate {rate}: adamw {adamw}, adafactor {adafactor}")
print("Expected: the same of both. With the rate in the decay:", scaled)
same = [pair[1] for pair in seen.values()] == [0.366] * 3
same = same and [pair[0] for pair in seen.values()] == [0.999, 1.0, 1.0]
sys.exit(0 if same and scaled == 0.999 else "The behaviour changed.")
EOF
