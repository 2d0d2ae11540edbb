"""The losses that a step of ResAlign is made of."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from unlearning_jax import finetune, stable_diffusion
from unlearning_jax.schedules import add_noise
from unlearning_jax.stable_diffusion import Params, StableDiffusion


@dataclasses.dataclass(frozen=True)
class Losses:
  """The losses of one step, as functions of the adapters.

  Attributes:
    sd: the model.
    join: makes parameters of adapters and `frozen["params"]`.
    frozen: `params`; `contexts`, see `sets.Sets`; and `tuning`, the images of
      the tunings: `latents`, `pair`, and `rows` (sets, n), where a set's are.
    batch: see `sets.Steps`.
  """

  sd: StableDiffusion
  join: Callable[[Any, Any], Params]
  frozen: Mapping[str, Any]
  batch: Mapping[str, Array]

  def concept(
    self, adapters: Any, key: PRNGKeyArray, rows: int
  ) -> Float[Array, ""]:
    """L: minus the denoising loss on the first `rows` images."""
    pair = self.batch["forget_pair"][:rows]
    context = self.frozen["contexts"]["concept"][pair]
    return -self._denoising(adapters, self.batch["forget"][:rows], context, key)

  def remain(self, adapters: Any, key: PRNGKeyArray) -> Float[Array, ""]:
    """| f_theta - f_0 |^2, a mean over rows and elements."""
    latents = self.batch["remain"]
    context = self.frozen["contexts"]["remain"][self.batch["remain_pair"]]
    t, noise = self._noise(latents, key)
    noisy = add_noise(self.sd.schedule, latents, noise, t)
    found, wanted = (
      stable_diffusion.predict_noise(
        self.sd, self.join(its, self.frozen["params"]), noisy, t, context
      )
      for its in (adapters, {})
    )
    return jnp.square(found - wanted).mean()

  def tuning(
    self, adapters: Any, key: PRNGKeyArray, of: Any, rows: int
  ) -> Float[Array, ""]:
    """The denoising loss on `rows` images of a set; the key draws them."""
    keys, its = jax.random.split(key), self.frozen["tuning"]
    row = jax.random.choice(keys[0], its["rows"][of], (rows,))
    context = self.frozen["contexts"]["remain"][its["pair"][row]]
    return self._denoising(adapters, its["latents"][row], context, keys[1])

  def _denoising(self, adapters, latents, context, key) -> Float[Array, ""]:
    t, noise = self._noise(latents, key)
    params = self.join(adapters, self.frozen["params"])
    return finetune.denoising_loss(self.sd, params, latents, noise, t, context)[
      0
    ]

  def _noise(self, latents: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
    keys, steps = jax.random.split(key), self.sd.schedule.num_train_timesteps
    t = jax.random.randint(keys[1], (len(latents),), 0, steps)
    return t, jax.random.normal(keys[0], latents.shape)
