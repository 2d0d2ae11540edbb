"""The probe by drawing: what an edit does to small drawings of phrases.

Base and edit draw the same phrases from the same noise, in four steps. With x
and x' their images, and s the distance that two phrases usually have,

  left  = 1 - mean of |x' - x| / s  over what was erased
  moved =     mean of |x' - x| / s  over other phrases.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from unlearning_jax import sampling
from unlearning_jax.model import Model
from unlearning_jax.probe import Probe
from unlearning_jax.probe.phrases import Asked, usual
from unlearning_jax.sampling import Request, Sampling

MOST = (2, 4, 8)
SENTENCES = ("a picture of {}", "an image showing {}")
STEPS = 4
# Two drawings of the same phrase differ in it; two phrases are compared in one.
_SEEDS = (0, 1)


def measure(base: Model, edited: Model, asked: Asked) -> Probe:
  """Draws phrases by base and edit, and compares the images.

  Args:
    base: the model that was edited.
    edited: the same with an edit or guidance.
    asked: the phrases.
  """
  erased = [*dict.fromkeys(phrase for phrase, _ in asked.pairs)]
  phrases = [*erased, *asked.preserved, *asked.unrelated]
  usually = usual(base.source)
  how = Sampling(STEPS, usually.guidance_scale, "dpm++2m", "jax")
  before = _drawn(base, phrases, how)
  after = _drawn(_hurried(edited, usually.num_inference_steps), phrases, how)
  step = np.linalg.norm(after - before, axis=1) / _between(before)
  ends = np.cumsum([len(erased), len(asked.preserved)])
  own, held, rest = np.split(step, ends)
  return Probe(
    "drawings",
    # Below 0 it changed more than another phrase would.
    max(0.0, 1 - float(np.mean(own))),
    float(np.mean(held)) if len(held) else None,
    float(np.mean(rest)),
    (len(own), len(held), len(rest)),
  )


def _drawn(model: Model, phrases: Sequence[str], how: Sampling) -> np.ndarray:
  """Images in [0, 1] as rows of numbers."""
  asked = [
    Request(phrase, _SEEDS[i % len(_SEEDS)]) for i, phrase in enumerate(phrases)
  ]
  batches = sampling.draw(
    model.sd, model.drawn_params, asked, how, batch_size=9, **model.drawing
  )
  images = np.concatenate(list(batches)).astype(np.float32) / 255
  return images.reshape(len(images), -1)


def _hurried(model: Model, num_steps: int) -> Model:
  """The model with a warmup that is as long a part of fewer steps."""
  given = model.guidance
  if given is None or given.safe is None or given.safe.clock != "steps":
    return model
  warmup = round(given.safe.warmup * STEPS / num_steps)
  safe = dataclasses.replace(given.safe, warmup=warmup)
  return model.with_guidance(dataclasses.replace(given, safe=safe))


def _between(images: np.ndarray) -> float:
  """The median distance of two phrases that were drawn from one noise."""
  found = [
    np.linalg.norm(images[i] - images[j])
    for i in range(len(images))
    for j in range(i + len(_SEEDS), len(images), len(_SEEDS))
  ]
  return float(np.median(found))
