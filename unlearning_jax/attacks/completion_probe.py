"""Completion (Lu et al., NeurIPS 2025): the victim finishes the base's picture.

Nothing is optimized. By DDIM the base takes the first k of n steps on the row's
own prompt, and the victim takes the rest on the same prompt:

  x_{i+1} = DDIM(x_i, eps_base(x_i, c))   for i < k, then with eps_victim .

After a few steps the latents hold the layout of the concept and no detail of
it. A network without the concept may finish such a layout too, so compare with
one that never knew it.

"When Are Concepts Erased From Diffusion Models?", code at
kevinlu4588/WhenAreConceptsErased @9a03e07.
"""

import dataclasses
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
    base_steps: k, the steps that the base takes; one image for each.
    steps: n, the number of DDIM steps.
    guidance_scale: of classifier-free guidance; that of the rows is not read.
  """

  base_steps: tuple[int, ...] = (5,)
  steps: int = 50
  guidance_scale: float = 7.5

  # The prompt stays as it is.
  num_tokens = 0
  insertion = "prefix_k"

  def __post_init__(self):
    denoising.check_numbers(self.steps, guidance_scale=self.guidance_scale)
    good = all(0 <= k < self.steps for k in self.base_steps)
    if not self.base_steps or not good:
      raise ValueError(
        f"base_steps={self.base_steps}: name one or more, from 0 to steps - 1 "
        f"= {self.steps - 1}"
      )

  @property
  def blocks(self) -> int:
    """The number of images: one for each of `base_steps`."""
    return len(self.base_steps)

  @property
  def iterations(self) -> int:
    """The victim's steps in the image that has most of them."""
    return self.steps - min(self.base_steps)

  @property
  def first_calls(self) -> int:
    """UNet rows of the base, before the first iteration."""
    return 2 * max(self.base_steps)


class State(NamedTuple):
  """The lanes: key, steps done, alive, text states, latents, and the starts.

  `starts` holds the base's latents, one for each of `base_steps`.
  """

  key: Array
  count: Int[Array, " b"]
  alive: Bool[Array, " b"]
  contexts: Float[Array, "b 2 l d"]
  latents: Float[Array, "b h w c"]
  starts: Float[Array, "b k h w c"]


def init(problem: Problem, key: Array, h: Hparams) -> State:
  """The base's steps, from the row's noise.

  Raises:
    ValueError: the victim cannot be probed, see `denoising.check`.
  """
  denoising.check(problem)
  sd, victim, base, batch = problem
  first = lane_state.begin(key, batch)
  x = lane_state.normal(first[0], sd.latent_shape)
  contexts, plan = denoising.contexts(sd, base, batch), _plan(problem, h)

  def body(x: Array, i: Array) -> tuple[Array, Array]:
    after = _denoised(problem, base, contexts, x, jnp.full(len(x), i), plan, h)
    return after, x

  count = max(h.base_steps)
  last, before = jax.lax.scan(body, x, jnp.arange(count))
  every = jnp.concatenate([before, last[None]])
  starts = jnp.moveaxis(every[jnp.asarray(h.base_steps)], 0, 1)
  contexts = denoising.contexts(sd, victim, batch)
  return State(*first, contexts, jnp.zeros_like(x), starts)


def step(
  problem: Problem, state: State, h: Hparams
) -> tuple[State, dict[str, Array]]:
  """One step of every lane; a lane that is not finite stays as it was."""
  image = jnp.minimum(state.count // h.iterations, h.blocks - 1)
  begins = jnp.asarray(h.base_steps)[image]
  i = state.count % h.iterations + min(h.base_steps)
  start = state.starts[jnp.arange(len(image)), image]
  # A lane waits until its own start; what it computes before is not used.
  held = denoising.of(i <= begins)
  x = jnp.where(held, start, state.latents)
  plan = _plan(problem, h)
  new = _denoised(problem, problem.victim, state.contexts, x, i, plan, h)
  x = jnp.where(denoising.of(i < begins), start, new)
  info = {"base_steps": begins * 1.0, "norm": lane_state.rms(x)}
  return lane_state.advance(state, (new,), latents=x), info


def prompt(batch: Batch, state: State, h: Hparams) -> Float[Array, "b h w c"]:
  """The latents of the image."""
  del batch, h
  return state.latents


def _plan(problem: Problem, h: Hparams) -> denoising.Plan:
  return denoising.plan(problem.sd, h.steps)


def _denoised(problem, who, contexts, x, i, plan, h) -> Array:
  """A DDIM step of each lane, by one of the problem's networks."""
  t, level, after = plan.at(i)
  found = denoising.predict(problem.sd, who, x, t, contexts)
  eps = denoising.guided(found, h.guidance_scale)
  return denoising.step(x, eps, level, after)
