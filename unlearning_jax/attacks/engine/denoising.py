"""What network probes share: lanes that denoise, each at its own DDIM step.

Other attacks search for a text, and the sampler draws it. A probe changes how
an image is drawn, so it denoises inside its lanes. With a_t the schedule's
cumulative alpha and a' that of the next step, a DDIM step (Song et al., ICLR
2021) is

  x_0 = (x - sqrt(1 - a_t) eps) / sqrt(a_t)
  x'  = sqrt(a') x_0 + sqrt(1 - a') eps .

`of` gives a number a lane the shape of latents.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from unlearning_jax import samplers, stable_diffusion
from unlearning_jax.attacks.engine import losses
from unlearning_jax.attacks.engine.victim import (
  Batch,
  Problem,
  Victim,
  text_states,
)
from unlearning_jax.stable_diffusion import StableDiffusion


class Plan(NamedTuple):
  """The DDIM steps from noise to image: t, a_t and a'; each (n,)."""

  times: np.ndarray
  level: np.ndarray
  next_level: np.ndarray

  def at(self, i: Int[Array, " b"]) -> tuple[Array, Array, Array]:
    """T (b,), and a_t and a' (b, 1, 1, 1), of each lane's step."""
    level, after = (
      jnp.asarray(table, float)[i] for table in self[1:]
    )  # fmt: skip
    return jnp.asarray(self.times)[i], of(level), of(after)


def plan(sd: StableDiffusion, steps: int) -> Plan:
  """The steps that DDIM takes over the model's schedule.

  Raises:
    ValueError: the schedule cannot place so many steps.
  """
  try:
    return Plan(*samplers.ddim_levels(sd.schedule.with_sampler("ddim"), steps))
  except ValueError as error:
    raise ValueError(f"hparams.steps={steps}: {error}") from error


def check(problem: Problem):
  """Refuses victims that a probe of the network says nothing about.

  Raises:
    ValueError: the model does not predict noise; or the victim acts by
      guidance, and its network is the base's.
  """
  losses.check_noise(problem.sd.schedule)
  if problem.victim.is_guided:
    raise ValueError(
      "guidance: a probe asks what the network draws, and this victim acts by "
      "guidance, with the base's network; leave guidance empty, or take an "
      "attack that reads prompts, such as method='unlearn_diff_atk'"
    )


def check_numbers(steps: int, **positive: float):
  """Refuses a number of steps below 1, and numbers that are not above 0.

  Raises:
    ValueError: naming the key.
  """
  if steps < 1:
    raise ValueError(f"steps={steps}: must be at least 1")
  for key, value in positive.items():
    if not (math.isfinite(value) and value > 0):
      raise ValueError(f"{key}={value}: must be finite and above 0")


def contexts(
  sd: StableDiffusion, who: Victim, batch: Batch
) -> Float[Array, "b 2 l d"]:
  """Each lane's text states of the empty prompt and of its own."""
  own = text_states(sd, who, batch)
  none = jnp.asarray(stable_diffusion.tokenize(sd, [""]))
  empty = text_states(sd, who, batch._replace(ids=none))
  return jnp.stack([jnp.broadcast_to(empty, own.shape), own], 1)


def predict(
  sd: StableDiffusion,
  who: Victim,
  latents: Float[Array, "b h w c"],
  t: Int[Array, " b"],
  contexts: Float[Array, "b n l d"],
) -> Float[Array, "b n h w c"]:
  """The noise that the network predicts in each context, in float32."""
  ways = contexts.shape[1]
  rows = contexts.reshape(-1, *contexts.shape[2:])
  x, times = jnp.repeat(latents, ways, axis=0), jnp.repeat(t, ways)
  out = stable_diffusion.predict_noise(sd, who.params, x, times, rows)
  return out.astype(jnp.float32).reshape(-1, ways, *latents.shape[1:])


def guided(predictions: Float[Array, "b 2 h w c"], scale: float) -> Any:
  """eps(empty) + scale (eps(own) - eps(empty)), (b, h, w, c)."""
  empty, own = predictions[:, 0], predictions[:, 1]
  return empty + scale * (own - empty)


def clean(x: Array, eps: Array, level: Array) -> Array:
  """x_0, as predicted from x at a_t = `level`."""
  return (x - jnp.sqrt(1 - level) * eps) / jnp.sqrt(level)


def step(x: Array, eps: Array, level: Array, after: Array) -> Array:
  """The latents after a DDIM step, without noise."""
  return jnp.sqrt(after) * clean(x, eps, level) + jnp.sqrt(1 - after) * eps


def of(number: Array) -> Array:
  """(b,) as (b, 1, 1, 1)."""
  return number[:, None, None, None]
