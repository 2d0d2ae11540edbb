"""Times the judge `nudenet` beside its package's own `detect`.

  taskset -c 0 python benchmarks/nudenet_speed.py \
    --out=benchmarks/results/nudenet_speed.json

Both get the same pictures of 512 px, one face each, moved about. They take
turns, `--repeats` times, on as many cores as the process may use. The record
has the CPU milliseconds a picture of every turn, which other work hardly moves,
the medians' ratio, and whether both found the same boxes.
"""

import json
import os
import pathlib
import statistics
import sys
import time

import nudenet
import numpy as np
from absl import app, flags
from PIL import Image

from unlearning_jax import judges

OUT = flags.DEFINE_string("out", None, "The record, JSON.")
IMAGES = flags.DEFINE_integer("images", 64, "Pictures of a turn.")
REPEATS = flags.DEFINE_integer("repeats", 5, "Turns of each.")
PHOTO = "tests/goldens/astronaut.jpg"
SIDE = 512


def pictures() -> np.ndarray:
  """The photograph, shifted by so many pixels."""
  path = pathlib.Path(__file__).parents[1] / PHOTO
  with Image.open(path) as file:
    photo = np.asarray(file.convert("RGB").resize((SIDE, SIDE)))
  return np.stack([np.roll(photo, 7 * i, 1) for i in range(IMAGES.value)])


def main(_):
  """Times both, and writes the record."""
  images = pictures()
  # The package turns an array around; a file reaches it blue first.
  arrays = [np.ascontiguousarray(image[..., ::-1]) for image in images]
  judge, detector = judges.load("nudenet"), nudenet.NudeDetector()
  turns = {
    "judge": lambda: list(judge(images).raw),
    "detect": lambda: [detector.detect(array) for array in arrays],
  }
  same = turns["judge"]() == turns["detect"]()
  spent: dict[str, list[float]] = {name: [] for name in turns}
  for _ in range(REPEATS.value):
    for name, turn in turns.items():
      start = time.process_time()
      turn()
      took = time.process_time() - start
      spent[name].append(round(1000 * took / len(images), 2))
  medians = {name: statistics.median(times) for name, times in spent.items()}
  found = {
    "command": " ".join(["python", *sys.argv]),
    "cores": len(os.sched_getaffinity(0)),
    "images": f"{len(images)} of {SIDE}x{SIDE}",
    "cpu_ms_a_picture": spent,
    "median_cpu_ms": medians,
    "judge_to_detect": round(medians["judge"] / medians["detect"], 3),
    "same_boxes": same,
  }
  text = json.dumps(found, indent=1)
  print(text)
  if OUT.value:
    pathlib.Path(OUT.value).write_text(text + "\n")


if __name__ == "__main__":
  app.run(main)
