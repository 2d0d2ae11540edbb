#!/usr/bin/env bash
# orbax-checkpoint 0.12.8: a step whose metric is not a number is kept as the
# best, and the best one is deleted.
#
# Most expect: `best_fn` with `max_to_keep=1` keeps the step of the lowest loss.
# A loss of NaN is never the lowest, or it is refused.
# Seen: the steps are sorted by the metric, and no comparison with NaN is true.
# So a NaN that comes last stays last, which is the best one's place, with "min"
# as with "max". The step of the lowest loss is deleted. Once a number follows,
# the NaN goes as well, and what is left is the step after the run broke.
# What works: a `best_fn` that gives `inf` for NaN, and `-inf` with "max".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet orbax-checkpoint==0.12.8 jax==0.10.2
cd "$folder"
JAX_PLATFORMS=cpu bin/python - <<'EOF'
import importlib.metadata
import logging
import math
import sys
import tempfile

import numpy as np
import orbax.checkpoint as ocp

logging.disable(logging.CRITICAL)


def kept(mode, losses, best_fn=lambda metrics: metrics["loss"]):
  """The steps left in the folder, and the best one of them."""
  options = ocp.CheckpointManagerOptions(
    best_fn=best_fn, best_mode=mode, max_to_keep=1
  )
  with ocp.CheckpointManager(tempfile.mkdtemp(), options=options) as manager:
    for step, loss in enumerate(losses):
      weights = ocp.args.StandardSave({"w": np.full(2, step)})
      manager.save(step, args=weights, metrics={"loss": loss})
      manager.wait_until_finished()
    return list(manager.all_steps()), manager.best_step()


def guarded(metrics):
  return math.inf if math.isnan(metrics["loss"]) else metrics["loss"]


nan = math.nan
last = kept("min", [0.5, 0.3, nan])
after = kept("min", [0.5, 0.3, nan, 0.4])
most = kept("max", [0.3, 0.5, nan])
right = kept("min", [0.5, 0.3, nan, 0.4], guarded)
print("orbax-checkpoint", importlib.metadata.version("orbax-checkpoint"))
print("Lowest of 0.5, 0.3, nan: expected ([1], 1), seen", last)
print("Lowest of 0.5, 0.3, nan, 0.4: expected ([1], 1), seen", after)
print("  with inf in place of nan:", right)
print("Highest of 0.3, 0.5, nan: expected ([1], 1), seen", most)
same = last == most == ([2], 2) and after == ([3], 3) and right == ([1], 1)
sys.exit(0 if same else "The behaviour changed.")
EOF
