#!/usr/bin/env bash
# diffusers 0.42.1: a change of scheduler gives other timesteps after a save.
#
# Most expect: `DDIMScheduler.from_config(pipe.scheduler.config)` is the same
# scheduler whether or not the pipeline was saved and loaded before.
# Seen: a scheduler in memory remembers which settings it never got, and the
# next class fills these with its own defaults. A file holds all settings as if
# somebody had chosen them. So PNDM -> Euler -> DDIM visits 981, 961, ... in
# memory, and 999, 979, 958, ... with a save after Euler.
# What works: name `timestep_spacing` at each change.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1
cd "$folder"
bin/python - <<'EOF'
import sys
import tempfile

import diffusers
from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler

# What Stable Diffusion 1.4 ships.
shipped = PNDMScheduler(
  beta_start=0.00085,
  beta_end=0.012,
  beta_schedule="scaled_linear",
  skip_prk_steps=True,
  steps_offset=1,
  set_alpha_to_one=False,
)
euler = EulerDiscreteScheduler.from_config(shipped.config)
memory = DDIMScheduler.from_config(euler.config)
folder = tempfile.mkdtemp()
euler.save_pretrained(folder)
loaded = EulerDiscreteScheduler.from_pretrained(folder)
disk = DDIMScheduler.from_config(loaded.config)
direct = DDIMScheduler.from_config(shipped.config)
seen = {}
for name, scheduler in (("direct", direct), ("memory", memory), ("disk", disk)):
  scheduler.set_timesteps(50)
  seen[name] = (scheduler.config.timestep_spacing, scheduler.timesteps.tolist())

print("diffusers", diffusers.__version__)
print("Expected: the same 50 timesteps three times.")
for name, (spacing, steps) in seen.items():
  print(f"Seen: {name:7}{spacing:10}", steps[:3], "...", steps[-2:])
same = seen["direct"] == seen["memory"] and seen["disk"] == (
  "linspace",
  seen["disk"][1],
)
same = same and seen["memory"][1][0] == 981 and seen["disk"][1][0] == 999
sys.exit(0 if same else "The behaviour changed.")
EOF
