#!/usr/bin/env bash
# jax 0.10.2 with libtpu 0.0.52, without a TPU: the compiler's efforts change
# nothing.
#
# A program for a TPU can be compiled on any machine; that of a diffusion model
# takes many minutes. XLA has `exec_time_optimization_effort` and
# `memory_fitting_effort`, from -1.0, the least, to 1.0.
# Most expect: -1.0 compiles sooner, to another program.
# Seen: libtpu 0.0.52 makes a program of the same sizes as by default, without a
# word. With 0.0.42.1, which jax 0.10.2 asks for, -1.0 makes a fifteenth of the
# code; it took a sixteenth of the time.
# What works in both: `optimization_level` and `memory_fitting_level`, at 9.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${PYTHON:-python3.12}
cat > "$folder/effort.py" <<'EOF'
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

chips = topologies.get_topology_desc("v5e:2x4", "tpu").devices
mesh = Mesh(np.array(chips), ("rows",))


def block(kernels, x):
  for kernel in kernels:
    x = x + jax.lax.conv_general_dilated(
      jax.nn.silu(x), kernel, (1, 1), "SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
  return x


def like(shape, spec):
  sharding = NamedSharding(mesh, spec)
  return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


x = like((8, 64, 64, 320), PartitionSpec("rows"))
kernels = [like((3, 3, 320, 320), PartitionSpec())] * 3
lowered = jax.jit(block).lower(kernels, x)
seen = {}
for name, options in {
  "default": {},
  "efforts of -1.0": {
    "exec_time_optimization_effort": -1.0, "memory_fitting_effort": -1.0,
  },
  "levels of 9": {"optimization_level": 9, "memory_fitting_level": 9},
}.items():
  before = time.process_time()
  size = lowered.compile(compiler_options=options).memory_analysis()
  seconds = time.process_time() - before
  code = size.generated_code_size_in_bytes
  seen[name] = code, size.temp_size_in_bytes, seconds
  print(
    f"  {name}: {code} bytes of code, {size.temp_size_in_bytes} of "
    f"temporaries, {seconds:.1f} CPU s"
  )
default, efforts, levels = (one[:2] for one in seen.values())
is_small = efforts[0] < default[0] / 10 and seen["efforts of -1.0"][2] < (
  seen["default"][2] / 4
)
expected = efforts == default if sys.argv[1] == "0.0.52" else is_small
expected = expected and levels[0] < default[0] / 4
sys.exit(0 if expected else "The behaviour changed.")
EOF
for version in 0.0.42.1 0.0.52; do
  "$python" -m venv "$folder/$version"
  "$folder/$version/bin/pip" install --quiet jax==0.10.2 numpy==2.4.6 \
    "libtpu==$version"
  echo "libtpu $version"
  TPU_SKIP_MDS_QUERY=1 ALLOW_MULTIPLE_LIBTPU_LOAD=1 \
    "$folder/$version/bin/python" "$folder/effort.py" "$version"
done
