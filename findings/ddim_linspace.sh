#!/usr/bin/env bash
# diffusers 0.42.1: DDIM and PNDM with `timestep_spacing="linspace"` tell the
# network a wrong noise level.
#
# Most expect: step n leaves the latents at the noise level of timestep n + 1,
# and the last step leaves them clean. "leading" and "trailing" do so.
# Seen: the step goes down by 1000 // steps, while the timesteps lie
# 999 / (steps - 1) apart. With 10 steps the latents stand at level 899 where
# the network hears 888. A network that is right about the noise gets a clean
# image at 50 "leading" steps; with 10 "linspace" steps a fifth of the
# noise is left.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0 diffusers==0.42.1
cd "$folder"
bin/python - <<'EOF'
import sys

import diffusers
import torch
from diffusers import DDIMScheduler, PNDMScheduler

SETTINGS = {
  "beta_start": 0.00085,
  "beta_end": 0.012,
  "beta_schedule": "scaled_linear",
}


def walk(scheduler, steps):
  """(timestep the network hears, level of the latents) a call; noise left.

  The clean image is 0 and the noise 1, so the latents are the noise's share,
  and a network that is always right about the noise says 1.
  """
  scheduler.set_timesteps(steps)
  share = (1 - scheduler.alphas_cumprod.double()) ** 0.5
  latents = share[scheduler.timesteps[0]].reshape(1)
  calls = []
  for step in scheduler.timesteps:
    level = int((share - latents).abs().argmin())
    calls.append((int(step), level))
    noise = torch.ones(1, dtype=torch.float64)
    latents = scheduler.step(noise, step, latents).prev_sample
  return calls, round(float(latents), 4)


def ddim(spacing):
  return DDIMScheduler(**SETTINGS, clip_sample=False, timestep_spacing=spacing)


print("diffusers", diffusers.__version__)
print("Expected: both numbers of each pair are equal, and no noise is left.")
gaps, left = {}, {}
for spacing, steps in (
  ("leading", 10),
  ("leading", 50),
  ("trailing", 10),
  ("linspace", 3),
  ("linspace", 10),
  ("linspace", 50),
):
  calls, left[spacing, steps] = walk(ddim(spacing), steps)
  gaps[spacing, steps] = max(abs(a - b) for a, b in calls)
  print(
    f"Seen: DDIM {spacing} {steps}: widest gap {gaps[spacing, steps]},",
    f"noise left {left[spacing, steps]}, first",
    calls[:4],
  )
pndm = PNDMScheduler(
  **SETTINGS, skip_prk_steps=True, timestep_spacing="linspace"
)
print("Seen: PNDM linspace 10: first", walk(pndm, 10)[0][:5])
same = (
  gaps["leading", 50] <= 1
  and left["leading", 50] < 1e-6
  and gaps["trailing", 10] <= 1
  and gaps["linspace", 3] > 150
  and gaps["linspace", 10] > 50
  and left["linspace", 10] > 0.15
)
sys.exit(0 if same else "The behaviour changed.")
EOF
