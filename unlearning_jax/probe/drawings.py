"""The probe by drawing: what an edit does to small drawings of phrases.

Base and edit draw the same phrases from the same noise, in four steps. Whether
a concept is left is for the base to say, which recognizes what it can draw
(Li et al. 2023, https://arxiv.org/abs/2303.16203). How much it recognizes an
erased phrase c in latents x, rather than its anchor a, is

  s(x) = sum over t of  |f(x_t, t, a) - y|^2 - |f(x_t, t, c) - y|^2

where y is the noise, or the velocity. With x of the base, x' of the edit, and d
the distance that two phrases usually have,

  left  = sum of s(x') / sum of s(x)  over what was erased
  moved = mean of |x' - x| / d        over other phrases.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from unlearning_jax import guidance, sharding, stable_diffusion
from unlearning_jax.model import Model
from unlearning_jax.noise import row_noise
from unlearning_jax.probe import Probe
from unlearning_jax.probe.phrases import Asked, usual
from unlearning_jax.schedules import add_noise, velocity
from unlearning_jax.stable_diffusion import Params, StableDiffusion

MOST = (2, 2, 9)
STEPS = 4
# Of the schedule's steps. Less noise shows details that every drawing in so few
# steps lacks; more noise shows nothing.
LEVELS = (0.6, 0.7, 0.8)
# Drawings of what was erased.
ERASED = 4
# Two drawings of the same phrase differ in it; two phrases are compared in one.
_SEEDS = (0, 1)
# The noise that is added to be predicted: not one that was drawn from.
_ADDED = len(_SEEDS)
_BATCH = 5

Latents = Float[Array | np.ndarray, "b h w c"]
Drawn = Float[np.ndarray, "b h w c"]


def measure(base: Model, edited: Model, asked: Asked) -> Probe:
  """Draws phrases by base and edit, and asks the base what it recognizes.

  Args:
    base: the model that was edited.
    edited: the same with an edit or guidance.
    asked: the phrases.
  """
  pairs = [*dict.fromkeys(asked.pairs)]
  # A concept alone is drawn from more seeds.
  erased = [pair for pair in pairs for _ in range(ERASED // len(pairs) or 1)]
  phrases = [c for c, _ in erased] + [*asked.preserved, *asked.unrelated]
  usually = usual(base.source)
  hurried = _hurried(edited, usually.num_inference_steps)
  before = _drawn(base, phrases, usually.guidance_scale)
  after = _drawn(hurried, phrases, usually.guidance_scale)
  ends = np.cumsum([len(erased), len(asked.preserved)])
  change = (after - before).reshape(len(phrases), -1)
  step = np.linalg.norm(change, axis=1) / _between(before)
  _, held, rest = np.split(step, ends)
  params = sharding.on_device(base.params)
  old, new = (
    _recognized(base.sd, params, drawn[: len(erased)], erased)
    for drawn in (before, after)
  )
  return Probe(
    "drawings",
    max(0.0, _share(new, old)),
    float(np.mean(held)) if len(held) else None,
    float(np.mean(rest)),
    (len(erased), len(held), len(rest)),
  )


def _share(new: np.ndarray, old: np.ndarray) -> float:
  """How much is still recognized; NaN where the base recognizes nothing."""
  whole = old.sum()
  return float(new.sum() / whole) if whole > 0 else float("nan")


def _between(latents: Drawn) -> float:
  """The median distance of two phrases that were drawn from one noise."""
  found = [
    np.linalg.norm(latents[i] - latents[j])
    for i in range(len(latents))
    for j in range(i + len(_SEEDS), len(latents), len(_SEEDS))
  ]
  return float(np.median(found))


def _drawn(model: Model, phrases: Sequence[str], scale: float) -> Drawn:
  """Latents of phrases; seeds take turns."""
  sd, params = model.sd, sharding.on_device(model.drawn_params)
  how = model.drawing
  encode = functools.partial(
    stable_diffusion.encode_prompts, sd, params, edit=how.pop("edit_context")
  )
  guided = guidance.contexts(encode, scale, **how)
  # One shape, so that one program is compiled.
  rows = np.arange(-(-len(phrases) // _BATCH) * _BATCH)
  rows = np.minimum(rows, len(phrases) - 1)
  contexts = encode([phrases[i] for i in rows])
  seeds = [_SEEDS[i % len(_SEEDS)] for i in rows]
  noise = row_noise(seeds, sd.latent_shape)
  found = [
    stable_diffusion.sample_latents(
      sd,
      params,
      contexts[first : first + _BATCH],
      noise=jnp.asarray(noise[first : first + _BATCH]),
      **guided,
      num_inference_steps=STEPS,
      guidance_scale=scale,
      sampler="dpm++2m",
    )
    for first in range(0, len(rows), _BATCH)
  ]
  return np.concatenate(found)[: len(phrases)]


def _recognized(
  sd: StableDiffusion,
  params: Params,
  latents: Drawn,
  pairs: Sequence[tuple[str, str]],
) -> np.ndarray:
  """How much of each row's phrase is recognized, rather than of its anchor."""
  seeds = [_ADDED + i for i in range(len(LEVELS))]
  noises = row_noise(seeds, sd.latent_shape)
  found = np.zeros(len(latents))
  for sign, texts in zip((-1, 1), zip(*pairs, strict=True), strict=True):
    context = stable_diffusion.encode_prompts(sd, params, texts)
    for level, noise in zip(LEVELS, noises, strict=True):
      t = jnp.full(len(latents), int(level * sd.schedule.num_train_timesteps))
      added = jnp.broadcast_to(noise, latents.shape)
      found += sign * _error(sd, params["unet"], latents, added, t, context)
  return found


@functools.partial(jax.jit, static_argnums=0)
def _error(
  sd: StableDiffusion,
  unet: Params,
  latents: Latents,
  noise: Latents,
  t: Array,
  context: Float[Array, "b l d"],
) -> Float[Array, " b"]:
  """The squared error of each row's prediction."""
  wanted = noise
  if sd.schedule.prediction_type == "v_prediction":
    wanted = velocity(sd.schedule, latents, noise, t)
  noisy = add_noise(sd.schedule, latents, noise, t)
  found = stable_diffusion.predict_noise(sd, {"unet": unet}, noisy, t, context)
  return jnp.square(found - wanted).sum(axis=(1, 2, 3))


def _hurried(model: Model, num_steps: int) -> Model:
  """The model with a warmup that is as long a part of fewer steps."""
  given = model.guidance
  if given is None or given.safe is None or given.safe.clock != "steps":
    return model
  warmup = round(given.safe.warmup * STEPS / num_steps)
  safe = dataclasses.replace(given.safe, warmup=warmup)
  return model.with_guidance(dataclasses.replace(given, safe=safe))
