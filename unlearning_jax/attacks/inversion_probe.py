"""TINA (CVPR 2026) and TINA+: inverts an image of the concept without a text.

With the empty prompt alone, the probe looks for the noise from which the victim
draws the row's target image, and draws from it. With a_t and a' the levels of a
DDIM step, the step is undone by the fixed point of

  z = f(z) = C1 z' + C2 eps(z, t, "") ,
  C1 = sqrt(a_t / a') ,   C2 = sqrt(1 - a_t) - C1 sqrt(1 - a') .

TINA begins at f(z') and takes AdamW steps on |z - f(z)|^2, through which eps
carries no gradient. With `solver="fixed_point"` it repeats z <- f(z) instead.

Any network has such noise, one with random weights too, if the noise may be
of any size. So TINA+ begins with forward noise at `start` T, and penalizes
noise of too low an energy by lambda relu(-r - margin)^2, with

  r = (|z|^2 - m) / sqrt(v) ,  m = a_t |z_0|^2 + (1 - a_t) D ,
  v = 2 D (1 - a_t)^2 + 4 a_t (1 - a_t) |z_0|^2 ,

which has mean 0 and variance 1 for forward noise of the D numbers z_0. The
weight lambda of the paper is not known here; 1 is this library's.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from unlearning_jax.attacks.engine import adam, denoising, lane_state
from unlearning_jax.attacks.engine.victim import Batch, Problem
from unlearning_jax.concepts import check_choice

UNET_CALLS = 1
FINDS = "images"
SOLVERS = ("adamw", "fixed_point")


@dataclasses.dataclass(frozen=True)
class Hparams:
  """The probe's hyperparameters.

  Attributes:
    steps: the number of DDIM steps, up and down.
    updates: updates of z at each step, after its start.
    solver: `adamw`, as released, or `fixed_point`.
    learning_rate: AdamW's alpha.
    weight_decay: AdamW's lambda.
    energy: the weight of the energy's penalty; TINA has none.
    margin: the r below minus which the penalty acts.
    start: the share of the steps that forward noise takes the place of.
  """

  steps: int = 50
  updates: int = 25
  solver: str = "adamw"
  learning_rate: float = 1e-3
  weight_decay: float = 0.01
  energy: float = 0.0
  margin: float = 10.0
  start: float = 0.0

  # No prompt is read.
  num_tokens = 0
  insertion = "prefix_k"
  blocks = 1

  def __post_init__(self):
    denoising.check_numbers(self.steps, learning_rate=self.learning_rate)
    check_choice("solver", self.solver, SOLVERS)
    if self.updates < 0:
      raise ValueError(f"updates={self.updates}: must not be negative")
    if not 0 <= self.start < 1 or self.skipped == self.steps:
      raise ValueError(f"start={self.start}: allowed: 0 to below 1")
    for key in ("energy", "margin", "weight_decay"):
      value = getattr(self, key)
      if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{key}={value}: must be finite, 0 or more")
    if self.energy and self.solver != "adamw":
      raise ValueError(
        f"energy={self.energy}: a penalty needs a gradient; give "
        "solver='adamw', or energy=0"
      )

  @property
  def skipped(self) -> int:
    """The steps that forward noise takes the place of."""
    return round(self.start * self.steps)

  @property
  def climbing(self) -> int:
    """The iterations that invert the image."""
    return (self.steps - self.skipped) * (self.updates + 1)

  @property
  def iterations(self) -> int:
    """The iterations that invert the image, and those that draw it."""
    return self.climbing + self.steps


class State(NamedTuple):
  """The lanes: key, iterations done, alive, text states, z, z', moments."""

  key: Array
  count: Int[Array, " b"]
  alive: Bool[Array, " b"]
  contexts: Float[Array, "b 1 l d"]
  latents: Float[Array, "b h w c"]
  before: Float[Array, "b h w c"]
  moments: adam.Moments


def init(problem: Problem, key: Array, h: Hparams) -> State:
  """The target's latents, or their forward noise.

  Raises:
    ValueError: the victim cannot be probed, see `denoising.check`.
  """
  denoising.check(problem)
  sd, victim, _, batch = problem
  first, plan = lane_state.begin(key, batch), denoising.plan(sd, h.steps)
  z = batch.latents
  if h.skipped:
    _, _, level = plan.at(jnp.array([h.steps - 1 - h.skipped]))
    noise = lane_state.normal(first[0], sd.latent_shape)
    z = jnp.sqrt(level) * z + jnp.sqrt(1 - level) * noise
  contexts = denoising.contexts(sd, victim, batch)[:, :1]
  return State(*first, contexts, z, z, adam.start(z))


def step(
  problem: Problem, state: State, h: Hparams
) -> tuple[State, dict[str, Array]]:
  """One iteration of every lane; a lane that is not finite stays as it was."""
  up = state.count < h.climbing
  turn = state.count % (h.updates + 1)
  rung = h.steps - 1 - h.skipped - state.count // (h.updates + 1)
  i = jnp.where(up, rung, state.count - h.climbing)
  t, level, after = denoising.plan(problem.sd, h.steps).at(i)
  z = state.latents
  eps = denoising.predict(problem.sd, problem.victim, z, t, state.contexts)
  eps, fresh = eps[:, 0], denoising.of(turn == 0)
  # The first turn of a rung starts from where the last one ended.
  before = jnp.where(fresh, z, state.before)
  moments = lane_state.keep_lanes(turn == 0, adam.start(z), state.moments)
  wanted = inverse(before, eps, level, after)
  r = score(z, problem.batch.latents, level)
  if h.solver == "adamw":
    gradient = 2 * (z - wanted)
    if h.energy:
      slope = penalty_gradient(z, problem.batch.latents, level, h)
      gradient += h.energy * slope
    moved, stepped = adam.update(
      z, gradient, moments, learning_rate=h.learning_rate,
      weight_decay=h.weight_decay, decay="decoupled",
    )  # fmt: skip
    moments = lane_state.keep_lanes(turn == 0, moments, stepped)
  else:
    moved = wanted
  climbed = jnp.where(fresh, wanted, moved)
  x = jnp.where(denoising.of(up), climbed, denoising.step(z, eps, level, after))
  # The engine takes means over all iterations, and these are of some.
  share = up * (h.iterations / h.climbing)
  residual = jnp.square(z - wanted).reshape(len(z), -1).mean(axis=1)
  info = {"loss": residual * share, "energy": r * share}
  info["norm"] = lane_state.rms(x)
  new = lane_state.advance(
    state, (x, eps), latents=x, before=before, moments=moments
  )
  return new, info


def inverse(before: Array, eps: Array, level: Array, after: Array) -> Array:
  """The f of the module's rule, with z' = `before`."""
  first = jnp.sqrt(level / after)
  second = jnp.sqrt(1 - level) - first * jnp.sqrt(1 - after)
  return first * before + second * eps


def score(
  z: Float[Array, "b h w c"], clean: Float[Array, "b h w c"], level: Array
) -> Float[Array, " b"]:
  """The energy r of z at a_t = `level`, where `clean` is z_0."""
  mean, spread = _moments(clean, level)
  return (_square(z) - mean) / spread


def penalty_gradient(
  z: Float[Array, "b h w c"], clean: Array, level: Array, h: Hparams
) -> Float[Array, "b h w c"]:
  """The gradient of relu(-r - margin)^2 at z."""
  _, spread = _moments(clean, level)
  low = jax.nn.relu(-score(z, clean, level) - h.margin)
  return denoising.of(-4 * low / spread) * z


def prompt(batch: Batch, state: State, h: Hparams) -> Float[Array, "b h w c"]:
  """The latents of the image."""
  del batch, h
  return state.latents


def _square(z: Array) -> Array:
  return jnp.square(z.reshape(len(z), -1)).sum(axis=1)


def _moments(clean: Array, level: Array) -> tuple[Array, Array]:
  """The mean m and sqrt(v) of the module's rule, each (b,)."""
  a, own, size = level.ravel(), _square(clean), clean[0].size
  variance = 2 * size * (1 - a) ** 2 + 4 * a * (1 - a) * own
  return a * own + (1 - a) * size, jnp.sqrt(variance)
