"""A judge, a metric, features as a user would write them, in ten lines each."""

import dataclasses

import numpy as np

from unlearning_jax.judges import Judge
from unlearning_jax.metrics import Estimate, Metric
from unlearning_jax.metrics.features import Features


def _warmth(images):
  red = images[..., 0].mean((1, 2)) / 255
  return {"warmth": np.stack([red, 1 - red], 1)}


WARMTH = Judge(
  name="warmth",
  score=_warmth,
  labels={"warmth": ("warm", "cold")},
  thresholds={"warm": 0.75, "cold": 0.75},
  cannot_see="shapes",
)


def _add(state, images, rows):
  sums = dict(state)
  for image, row in zip(images, rows, strict=True):
    total = sums.get(row["model"], np.zeros(2))
    sums[row["model"]] = total + [image.mean(dtype=np.float64), 1]
  return sums


def _both(first, second):
  zero = np.zeros(2)
  return {m: first.get(m, zero) + second.get(m, zero) for m in first | second}


BRIGHTNESS = Metric(
  "brightness", dict, _add, _both,
  lambda state: [
    Estimate(
      "brightness", float(total / n), n=int(n), unit="levels",
      method="none: a toy", model=model,
    )
    for model, (total, n) in sorted(state.items())
  ],
)  # fmt: skip


def _colors(images):
  levels = images.astype(np.float64) / 255
  return np.concatenate([levels.mean((1, 2)), levels.std((1, 2))], 1)


COLORS = Features("colors", 6, _colors, "colors 1")

ASKS = dataclasses.replace(BRIGHTNESS, needs=("prompt",))
