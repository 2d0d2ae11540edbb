"""The losses that a step of ResAlign is made of."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from unlearning_jax import finetune, stable_diffusion
from unlearning_jax.finetune.partition import Leaves, join_leaves
from unlearning_jax.projections import leaves_of
from unlearning_jax.schedules import add_noise
from unlearning_jax.stable_diffusion import Params, StableDiffusion


@dataclasses.dataclass(frozen=True)
class Losses:
  """The losses of one step, as functions of the adapters.

  Attributes:
    sd: the model.
    join: makes parameters of adapters and `frozen["params"]`.
    frozen: `params`; `contexts`, see `sets.Sets`; and `tuning`, the images of
      the tunings: `latents` and `pair`; `rows` (sets, n), where a set's are,
      and `sizes` (sets), how many of these it has.
    batch: see `sets.Steps`.
  """

  sd: StableDiffusion
  join: Callable[[Any, Any], Params]
  frozen: Mapping[str, Any]
  batch: Mapping[str, Array]

  def merged(self, adapters: Leaves) -> Leaves:
    """W(theta): the weights with the adapters in them, path -> leaf."""
    return leaves_of(self.join(adapters, self.frozen["params"]))

  def of_weights(self) -> "Losses":
    """`concept` and `tuning` as functions of all weights, as `merged` has."""
    return dataclasses.replace(
      self, join=join_leaves, frozen={**self.frozen, "params": {}}
    )

  def concept(
    self, adapters: Leaves, keys: tuple[PRNGKeyArray, PRNGKeyArray], rows: int
  ) -> Float[Array, ""]:
    """L: minus the denoising loss on the first `rows` images.

    Args:
      adapters: the trained leaves.
      keys: draw the timesteps, and the noise.
      rows: the number of images.
    """
    pair = self.batch["forget_pair"][:rows]
    context = self.frozen["contexts"]["concept"][pair]
    return -self._denoising(
      adapters, self.batch["forget"][:rows], context, keys
    )

  def remain(self, adapters: Leaves, key: PRNGKeyArray) -> Float[Array, ""]:
    """| f_theta - f_0 |^2, a mean over rows and elements."""
    latents = self.batch["remain"]
    context = self.frozen["contexts"]["remain"][self.batch["remain_pair"]]
    t, noise = self._noise(latents, jax.random.split(key))
    noisy = add_noise(self.sd.schedule, latents, noise, t)
    found, wanted = (
      stable_diffusion.predict_noise(
        self.sd, self.join(its, self.frozen["params"]), noisy, t, context
      )
      for its in (adapters, {})
    )
    return jnp.square(found - wanted).mean()

  def tuning(
    self,
    adapters: Leaves,
    key: PRNGKeyArray,
    of: Int[np.ndarray | Array, ""] | int,
    rows: int,
  ) -> Float[Array, ""]:
    """The denoising loss on `rows` images of a set; the key draws them."""
    keys, its = jax.random.split(key), self.frozen["tuning"]
    drawn = jax.random.randint(keys[0], (rows,), 0, its["sizes"][of])
    row = its["rows"][of][drawn]
    context = self.frozen["contexts"]["remain"][its["pair"][row]]
    return self._denoising(
      adapters, its["latents"][row], context, jax.random.split(keys[1])
    )

  def _denoising(
    self,
    adapters: Leaves,
    latents: Array,
    context: Array,
    keys: Sequence[PRNGKeyArray] | PRNGKeyArray,
  ) -> Float[Array, ""]:
    t, noise = self._noise(latents, keys)
    params = self.join(adapters, self.frozen["params"])
    return finetune.denoising_loss(self.sd, params, latents, noise, t, context)[
      0
    ]

  def _noise(
    self, latents: Array, keys: Sequence[PRNGKeyArray] | PRNGKeyArray
  ) -> tuple[Array, Array]:
    steps = self.sd.schedule.num_train_timesteps
    t = jax.random.randint(keys[0], (len(latents),), 0, steps)
    return t, jax.random.normal(keys[1], latents.shape)
