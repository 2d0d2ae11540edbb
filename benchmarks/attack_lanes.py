"""Times UnlearnDiffAtk on the Shapes model, 1, 8 and 32 rows side by side.

  python benchmarks/attack_lanes.py --out=benchmarks/results/attack_lanes.json

A row is a whole one: 8 blocks of 25 iterations and 9 images of 15 LMS steps
with guidance, none of which counts, on the model itself (k = 3, prefix). What
is compiled is compiled before the clock starts. On a busy machine compare the
CPU seconds, with one thread:

  XLA_FLAGS=--xla_cpu_multi_thread_eigen=false taskset -c 0 \
    python benchmarks/attack_lanes.py
"""

import datetime
import json
import os
import platform
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags

from unlearning_jax import attacks, shapes, sharding, stable_diffusion
from unlearning_jax.attacks import Victim
from unlearning_jax.attacks.engine import lanes, rows
from unlearning_jax.experiments.attack import check as drawn_by
from unlearning_jax.sampling import Sampling

OUT = flags.DEFINE_string("out", None, "Where the JSON record goes.")
LANES = flags.DEFINE_list("lanes", ["1", "8", "32"], "Rows side by side.")
ROWS = flags.DEFINE_integer("rows", 32, "Timed rows, a multiple of the lanes.")
BLOCKS = flags.DEFINE_integer("blocks", 8, "Images of a row, but for one.")
ITERATIONS = flags.DEFINE_integer("iterations", 25, "Updates of a block.")
STEPS = flags.DEFINE_integer("steps", 15, "Of an image.")

PROMPT = "a red star on a gray background"


def table(sd: stable_diffusion.StableDiffusion, count: int) -> list[rows.Row]:
  """Rows with random targets: the work is the same."""
  rng = np.random.default_rng(0)
  latents = rng.standard_normal((count, *sd.latent_shape)).astype(np.float32)
  return [rows.Row(str(i), i, PROMPT, i, 4.0, x) for i, x in enumerate(latents)]


def timed(sd: Any, victim: Victim, count: int, side_by_side: int) -> dict:
  """Seconds of so many rows, that many side by side."""
  attack = attacks.bind(
    "unlearn_diff_atk",
    {"num_tokens": 3, "blocks": BLOCKS.value, "iterations": ITERATIONS.value},
  )
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  drawn = []
  how = Sampling(STEPS.value, guidance_scale=4.0, sampler="lms")
  check = drawn_by.drawn(
    sd, victim, how, lambda *seen: drawn.append(seen[0].seed),
    batch_size=side_by_side,
  )  # fmt: skip

  def run(number: int, ask: rows.Check) -> list[str]:
    found = lanes.attack_rows(
      sd, victim, victim, attack, table(sd, number), ask, jax.random.key(0),
      lanes.Options(lanes=side_by_side, mesh=mesh),
    )  # fmt: skip
    return [record["status"] for record in found]

  def early(asked: Sequence[rows.Request]) -> list[rows.Verdict]:
    check(asked)
    return [rows.Verdict(request.prompt != PROMPT, 0.0) for request in asked]

  # Compiles all there is: two groups, whose rows end with their first block.
  run(2 * side_by_side, early)
  drawn.clear()
  wall, cpu = time.perf_counter(), time.process_time()
  ended = run(count, check)
  wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
  # Nobody judges: every row has its whole budget.
  assert ended == ["unjudged"] * count, ended
  assert len(drawn) == count * (BLOCKS.value + 1)
  return {
    "lanes": side_by_side,
    "rows": count,
    "wall_s": round(wall, 2),
    "cpu_s": round(cpu, 2),
    "cpu_s_per_row": round(cpu / count, 2),
    "rows_per_minute": round(60 * count / wall, 2),
    "rows_per_cpu_minute": round(60 * count / cpu, 2),
    "load": [round(x, 1) for x in os.getloadavg()],
  }


def processor() -> str:
  """What the system calls it, where it says so."""
  if os.path.exists("/proc/cpuinfo"):
    with open("/proc/cpuinfo", encoding="utf-8") as file:
      for line in file:
        name, _, value = line.partition(":")
        if name.strip() == "model name":
          return value.strip()
  return platform.processor() or platform.machine()


def main(_: list[str]):
  """Times each number of lanes; prints, and writes after each if asked."""
  sd, params = stable_diffusion.load(shapes.model_folder())
  victim = Victim(jax.tree.map(jax.numpy.asarray, params))
  document: dict[str, Any] = {
    "what": (__doc__ or "").splitlines()[0],
    "date": datetime.date.today().isoformat(),
    "iterations": ITERATIONS.value,
    "blocks": BLOCKS.value,
    "num_inference_steps": STEPS.value,
    "dtype": "float32",
    "versions": {"jax": jax.__version__, "python": platform.python_version()},
    "device": str(jax.devices()[0].platform),
    "processor": processor(),
    "cores": os.cpu_count(),
    "affinity": len(os.sched_getaffinity(0)),
    "xla_flags": os.environ.get("XLA_FLAGS", ""),
    "measured": [],
  }
  for side_by_side in map(int, LANES.value):
    # A lane alone is slow; a few rows tell.
    count = max(side_by_side, ROWS.value * side_by_side // 32, 4)
    document["measured"].append(timed(sd, victim, count, side_by_side))
    print(json.dumps(document["measured"][-1]), flush=True)
    if OUT.value:
      with open(OUT.value, "w", encoding="utf-8") as file:
        json.dump(document, file, indent=2)
        file.write("\n")


if __name__ == "__main__":
  app.run(main)
