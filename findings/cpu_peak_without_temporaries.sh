#!/usr/bin/env bash
# jax 0.10.2, CPU: a program's `peak_memory_in_bytes` leaves its temporaries out.
#
# Most expect: the peak of `compiled.memory_analysis()` is at least its
# `temp_size_in_bytes`, so that a plan of a pod's memory can be tried on a CPU.
# Seen: the peak is arguments and outputs alone, 16 MiB of a program with 48 MiB of
# temporaries, and the process does grow by more than these 48 MiB.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
cat > "$folder/peak.py" <<'EOF'
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

MIB = 2**20


def held(name):
  """A line of this process's status, in MiB: VmRSS or VmHWM."""
  text = pathlib.Path("/proc/self/status").read_text()
  return int(text.split(f"{name}:")[1].split()[0]) / 1024


def network(x):
  y = jnp.sort(jnp.sin(x) @ jnp.cos(x), axis=0)
  return (y @ y).sum()


shape = jax.ShapeDtypeStruct((2048, 2048), jnp.float32)
program = jax.jit(network).lower(shape).compile()
found = program.memory_analysis()
fixed = found.argument_size_in_bytes + found.output_size_in_bytes
temporary, peak = found.temp_size_in_bytes, found.peak_memory_in_bytes
values = jax.device_put(np.zeros((2048, 2048), np.float32))
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = held("VmRSS")
program(values).block_until_ready()
grown = held("VmHWM") - before
print("jax", jax.__version__, jax.devices()[0].platform)
print(f"arguments and outputs {fixed / MIB:.1f} MiB")
print(f"temporaries {temporary / MIB:.1f} MiB; grown by {grown:.0f} MiB")
print(f"Expected: a peak of {temporary / MIB:.1f} MiB at least.")
print(f"Seen: a peak of {peak / MIB:.1f} MiB.")
same = abs(peak - fixed) < 4096 and temporary > 2 * peak and grown > temporary / MIB
sys.exit(0 if same else "The behaviour changed.")
EOF
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/peak.py"
