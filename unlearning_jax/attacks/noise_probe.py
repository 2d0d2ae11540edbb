"""Noise probe (Lu et al., NeurIPS 2025): draws with more noise than DDIM has.

Nothing is optimized. The victim draws the row's own prompt by DDIM whose steps
take away noise and add more than they should, so that the trajectory leaves the
paths that the erasure has bent:

  sigma^2 = eta^2 (1 - a') / (1 - a_t) (1 - a_t / a')
  x' = sqrt(a') x_0 + sqrt(|1 - a' - sigma^2|) eps + v sigma xi ,

with fresh normal xi. eta = 1 and v = 1 is DDPM. The paper takes eta up to 1.85,
where 1 - a' - sigma^2 may be negative; its code takes the absolute value. Each
image has the next v, then the next eta, and new noise to begin with.

"When Are Concepts Erased From Diffusion Models?", code at
kevinlu4588/WhenAreConceptsErased @9a03e07.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from unlearning_jax.attacks.engine import denoising, lane_state
from unlearning_jax.attacks.engine.victim import Batch, Problem

UNET_CALLS = 2
FINDS = "images"


@dataclasses.dataclass(frozen=True)
class Hparams:
  """The probe's hyperparameters.

  Attributes:
    etas: the noise of each step, in units of DDPM's.
    scales: v, the factors of the added noise alone.
    steps: the number of DDIM steps.
    guidance_scale: of classifier-free guidance; that of the rows is not read.
  """

  etas: tuple[float, ...] = (1.0, 1.17, 1.34, 1.51, 1.68, 1.85)
  scales: tuple[float, ...] = (1.0,)
  steps: int = 50
  guidance_scale: float = 7.5

  # The prompt stays as it is.
  num_tokens = 0
  insertion = "prefix_k"

  def __post_init__(self):
    denoising.check_numbers(self.steps, guidance_scale=self.guidance_scale)
    for key in ("etas", "scales"):
      values = getattr(self, key)
      if not values or not all(math.isfinite(v) and v >= 0 for v in values):
        raise ValueError(
          f"{key}={values}: name one finite number or more, none below 0"
        )

  @property
  def blocks(self) -> int:
    """The number of images: one for each eta with each v."""
    return len(self.etas) * len(self.scales)

  @property
  def iterations(self) -> int:
    """The steps of one image."""
    return self.steps


class State(NamedTuple):
  """The lanes: key, steps done, alive, text states, and latents."""

  key: Array
  count: Int[Array, " b"]
  alive: Bool[Array, " b"]
  contexts: Float[Array, "b 2 l d"]
  latents: Float[Array, "b h w c"]


def init(problem: Problem, key: Array, h: Hparams) -> State:
  """The text states of the victim; the first step draws the noise.

  Raises:
    ValueError: the victim cannot be probed, see `denoising.check`.
  """
  denoising.check(problem)
  denoising.plan(problem.sd, h.steps)
  sd, victim, _, batch = problem
  contexts = denoising.contexts(sd, victim, batch)
  empty = jnp.zeros((len(batch.number), *sd.latent_shape), jnp.float32)
  return State(*lane_state.begin(key, batch), contexts, empty)


def step(
  problem: Problem, state: State, h: Hparams
) -> tuple[State, dict[str, Array]]:
  """One step of every lane; a lane that is not finite stays as it was."""
  i, image = state.count % h.steps, state.count // h.steps
  keys = jax.vmap(jax.random.fold_in)(state.key, state.count)
  noise = jax.vmap(lambda k: _normal(k, 0, problem.sd.latent_shape))(keys)
  first = jax.vmap(lambda k: _normal(k, 1, problem.sd.latent_shape))(keys)
  x = jnp.where(denoising.of(i) == 0, first, state.latents)
  eta, scale = factors(image, h)
  t, level, after = denoising.plan(problem.sd, h.steps).at(i)
  eps = denoising.guided(
    denoising.predict(problem.sd, problem.victim, x, t, state.contexts),
    h.guidance_scale,
  )
  x = noisy_step(x, eps, scale * noise, level, after, eta)
  info = {"eta": eta[:, 0, 0, 0], "norm": lane_state.rms(x)}
  return lane_state.advance(state, (x, eps), latents=x), info


def factors(image: Int[Array, " b"], h: Hparams) -> tuple[Array, Array]:
  """Eta and v of each lane's image, each (b, 1, 1, 1)."""
  image = jnp.minimum(image, h.blocks - 1)
  eta = jnp.asarray(h.etas, jnp.float32)[image // len(h.scales)]
  scale = jnp.asarray(h.scales, jnp.float32)[image % len(h.scales)]
  return denoising.of(eta), denoising.of(scale)


def noisy_step(
  x: Array, eps: Array, noise: Array, level: Array, after: Array, eta: Array
) -> Array:
  """X' of the module's rule, with v xi = `noise`."""
  sigma = eta * jnp.sqrt((1 - after) / (1 - level) * (1 - level / after))
  kept = jnp.sqrt(jnp.abs(1 - after - sigma**2))
  x0 = denoising.clean(x, eps, level)
  return jnp.sqrt(after) * x0 + kept * eps + sigma * noise


def prompt(batch: Batch, state: State, h: Hparams) -> Float[Array, "b h w c"]:
  """The latents of the image."""
  del batch, h
  return state.latents


def _normal(key: Array, number: int, shape: tuple[int, ...]) -> Array:
  return jax.random.normal(jax.random.fold_in(key, number), shape)
