#!/usr/bin/env bash
# jax 0.10.2, 0.12.0.1 on CPU devices: many models in one program, each with its
# own weights, by `jax.vmap`; the models split over devices. A 1 x 1 convolution
# is computed wrongly, and nothing says so.
#
# Trainings that differ in a seed are often packed like that, and UNets, ResNets
# and autoencoders all have 1 x 1 convolutions.
# Most expect: how arrays are split never changes a result by more than rounding.
# Seen: with one device right. With two or four, off by as much as the numbers
# themselves, forward and gradient. A 3 x 3 convolution is right, and so is a
# 1 x 1 one that is written as a product.
# What works: `jax.shard_map` over the models, and `jax.vmap` within it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${PYTHON:-python3.12}
cat > "$folder/lanes.py" <<'EOF'
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

LANES = 4


def convolved(kernel, x):
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


def product(kernel, x):
  return x @ kernel[0, 0]


def gradient(kernel, x):
  return jax.grad(lambda k: jnp.sin(convolved(k, x)).sum())(kernel)


def far(one, width, devices, split_by_hand):
  """The largest error over the largest number."""
  draw = np.random.default_rng(0).standard_normal
  kernels = draw((LANES, width, width, 8, 8)).astype(np.float32)
  x = draw((LANES, 2, 8, 8, 8)).astype(np.float32)
  wanted = np.stack([one(k, row) for k, row in zip(kernels, x)])
  mesh = Mesh(np.array(jax.devices()[:devices]), ("lanes",))
  lanes = PartitionSpec("lanes")
  every = jax.vmap(one)
  if split_by_hand:
    every = jax.shard_map(
      every, mesh=mesh, in_specs=(lanes, lanes), out_specs=lanes
    )
  place = functools.partial(jax.device_put, device=NamedSharding(mesh, lanes))
  found = np.asarray(jax.jit(every)(place(kernels), place(x)))
  return float(abs(found - wanted).max() / abs(wanted).max())


print(f"jax {jax.__version__}: error of {LANES} models, relative to the largest")
seen = {}
for name, one, width in (
  ("1 x 1 convolution", convolved, 1),
  ("its gradient", gradient, 1),
  ("3 x 3 convolution", convolved, 3),
  ("1 x 1 as a product", product, 1),
):
  for devices in (1, 2, 4):
    for by_hand in (False, True):
      error = far(one, width, devices, by_hand)
      seen[name, devices, by_hand] = error
      way = "shard_map" if by_hand else "vmap"
      print(f"  {name}, {devices} device(s), {way}: {error:.1e}")
wrong = {
  key for key, error in seen.items() if error > 0.1
}
expected = {
  (name, devices, False)
  for name in ("1 x 1 convolution", "its gradient")
  for devices in (2, 4)
}
small = all(seen[key] < 1e-5 for key in seen.keys() - wrong)
sys.exit(0 if wrong == expected and small else "The behaviour changed.")
EOF
for version in 0.10.2 0.12.0.1; do
  "$python" -m venv "$folder/$version"
  "$folder/$version/bin/pip" install --quiet "jax==$version" numpy==2.4.6
  XLA_FLAGS=--xla_force_host_platform_device_count=4 JAX_PLATFORMS=cpu \
    "$folder/$version/bin/python" "$folder/lanes.py"
done
