"""Times an evaluation beside its drawing alone, and weighs 10,000 images.

  python benchmarks/evaluate_overlap.py \
    --out=benchmarks/results/evaluate_overlap.json

Time: a judge sleeps 0.9 times as long as a batch takes to draw. If the device
draws the next batch meanwhile, the evaluation takes as long as drawing and one
judgement. The Shapes model draws `--batches` batches of 50, once without a
judge's sleep and once with it, `--repeats` times in turn; the record has all
times and the median of the ratios. With `--fixed=1` the device only waits, 1
s a batch, so that a busy machine does not blur the ratio.

Memory: a process of its own draws so many images, the device gives noise, the
Shapes judge looks at them, and the record lies on disk. The figure is the most
that the process held.
"""

import functools
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent import futures

import jax
import numpy as np
from absl import app, flags

from unlearning_jax import model, record, sharding, stable_diffusion
from unlearning_jax.experiments import evaluate
from unlearning_jax.experiments.evaluate import Settings
from unlearning_jax.judges import Judge
from unlearning_jax.sampling import Sampling

OUT = flags.DEFINE_string("out", None, "The record, JSON.")
BATCHES = flags.DEFINE_integer("batches", 20, "Batches of 50 to draw.")
REPEATS = flags.DEFINE_integer("repeats", 3, "Times that both are timed.")
FIXED = flags.DEFINE_float("fixed", 0.0, "Seconds a batch; 0 draws Shapes.")
IMAGES = flags.DEFINE_list("images", ["1000", "10000"], "Images to weigh.")
WEIGH = flags.DEFINE_integer("weigh", 0, "Used by itself, in a new process.")
SLEEP = [0.0]


def _score(images: np.ndarray) -> dict[str, np.ndarray]:
  time.sleep(SLEEP[0])
  return {"any": np.zeros((len(images), 1))}


SLEEPER = Judge("sleeper", _score, {"any": ("any",)})


class Pending:
  """An array that a device is still making, as JAX returns one."""

  def __init__(self, made: futures.Future):
    self._made = made

  @property
  def addressable_shards(self):
    """The array's shards; waits for them."""
    return self._made.result().addressable_shards

  @property
  def shape(self) -> tuple[int, ...]:
    """The array's shape; waits for it."""
    return self._made.result().shape


def device(wait: float):
  """Replaces drawing by noise that a device gives after `wait` seconds."""
  # One thread: a device does one thing after another.
  pool = futures.ThreadPoolExecutor(1)

  def draw(count: int) -> jax.Array:
    time.sleep(wait)
    rng = np.random.default_rng(count)
    size = (count, 32, 32, 3)
    return jax.numpy.asarray(rng.integers(0, 256, size, dtype=np.uint8))

  def sample(*_, noise: jax.Array, **__) -> tuple[Pending, jax.Array]:
    finite = jax.numpy.ones(len(noise), bool)
    return Pending(pool.submit(draw, len(noise))), finite

  stable_diffusion.sample = sample


def timed(settings: Settings, sleep: float) -> float:
  """Seconds of a whole evaluation whose judge sleeps so long a batch."""
  SLEEP[0], run = sleep, record.Memory(quiet=True)
  models = {"base": model.load("shapes")}
  start = time.perf_counter()
  evaluate.run(settings, lambda: run, models)
  return time.perf_counter() - start


def overlap() -> dict[str, object]:
  """Times with and without the sleep, and the median of their ratios."""
  if FIXED.value:
    device(FIXED.value)
  settings = Settings(
    judge="__main__:SLEEPER", grid_rows=0,
    prompts={"others": ("a red star",) * 50 * BATCHES.value},
    sampling=Sampling(15, 4.0, "dpm++2m", "jax"),
  )  # fmt: skip
  timed(settings, 0.0)  # compiles
  alone, both = [], []
  for _ in range(REPEATS.value):
    alone.append(timed(settings, 0.0))
    batch = FIXED.value or alone[-1] / BATCHES.value
    both.append(timed(settings, 0.9 * batch))
  ratios = [b / a for a, b in zip(alone, both, strict=True)]
  return {
    "batches": BATCHES.value,
    "fixed_s": FIXED.value,
    "alone_s": [round(s, 3) for s in alone],
    "with_judge_s": [round(s, 3) for s in both],
    "ratio_median": round(statistics.median(ratios), 4),
  }


def weigh(images: int):
  """Draws and judges so many images; prints the most MiB that were held."""
  device(0.0)
  settings = Settings(judge="shapes", other_rows=images)
  with tempfile.TemporaryDirectory() as folder:
    opened = functools.partial(record.Workdir, folder, {})
    evaluate.run(settings, opened, {"base": model.load("shapes")})
  print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def main(_):
  """Times, weighs, and writes the record."""
  if WEIGH.value:
    return weigh(WEIGH.value)
  found: dict[str, object] = {
    "command": " ".join(["python", *sys.argv]),
    "devices": sharding.describe_devices(),
    "cores": os.cpu_count(),
    "overlap": overlap(),
  }
  found["memory_mib"] = {
    images: int(
      subprocess.run(
        [sys.executable, __file__, f"--weigh={images}"],
        check=True, capture_output=True, text=True,
      ).stdout.split()[-1]
    )
    for images in IMAGES.value
  }  # fmt: skip
  text = json.dumps(found, indent=1)
  print(text)
  if OUT.value:
    pathlib.Path(OUT.value).write_text(text + "\n")


if __name__ == "__main__":
  app.run(main)
