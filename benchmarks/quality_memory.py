"""Weighs FID and KID of few and of many pictures.

  python benchmarks/quality_memory.py \
    --out=benchmarks/results/quality_memory.json

A process of its own measures a folder of random pictures against itself, with a
cheap network of 2048 features in place of Inception's. The figure is the most
that the process held, in MiB. It holds the pages of the temporary file of the
reference's features too, which the system can drop: 8 KB a picture.
"""

import json
import pathlib
import resource
import subprocess
import sys
import tempfile

import numpy as np
from absl import app, flags
from PIL import Image

import unlearning_jax as ul
from unlearning_jax import sharding
from unlearning_jax.metrics.features import Features

OUT = flags.DEFINE_string("out", None, "The record, JSON.")
COUNTS = flags.DEFINE_list("counts", ["2100", "10000"], "Pictures.")
FOLDER = flags.DEFINE_string("folder", "", "Used by itself, in a new process.")
METRIC = flags.DEFINE_string("metric", "", "Likewise.")
WIDTH = 2048
METRICS = ("fid", "kid~subsets=10", "kid~subsets=10,most=1500")


def _embed(images: np.ndarray) -> np.ndarray:
  flat = [np.resize(image.ravel(), WIDTH) for image in images]
  return np.float32(flat) / 255


CHEAP = Features("cheap", WIDTH, _embed, "cheap 1")


def weigh(folder: str, metric: str):
  """Measures, and prints the most MiB that were held."""
  more = f"reference={folder},network=__main__:CHEAP"
  ul.measure(folder, [f"{metric}{',' if '~' in metric else '~'}{more}"])
  print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def main(_):
  """Draws the pictures, weighs each metric, and writes the record."""
  if FOLDER.value:
    return weigh(FOLDER.value, METRIC.value)
  rng, mib = np.random.default_rng(0), {}
  for count in COUNTS.value:
    with tempfile.TemporaryDirectory() as folder:
      for i in range(int(count)):
        image = rng.integers(0, 256, (26, 27, 3), dtype=np.uint8)
        Image.fromarray(image).save(pathlib.Path(folder) / f"{i:05}.png")
      for metric in METRICS:
        flags_ = [f"--folder={folder}", f"--metric={metric}"]
        done = subprocess.run(
          [sys.executable, __file__, *flags_],
          check=True, capture_output=True, text=True,
        )  # fmt: skip
        mib.setdefault(metric, {})[count] = int(done.stdout.split()[-1])
  found = {
    "command": " ".join(["python", *sys.argv]),
    "devices": sharding.describe_devices(),
    "mib": mib,
  }
  text = json.dumps(found, indent=1)
  print(text)
  if OUT.value:
    pathlib.Path(OUT.value).write_text(text + "\n")


if __name__ == "__main__":
  app.run(main)
