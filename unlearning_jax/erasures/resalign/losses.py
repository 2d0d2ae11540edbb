"""The losses that a step of ResAlign is made of."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from unlearning_jax import finetune, stable_diffusion
from unlearning_jax.finetune.partition import Leaves, join_leaves
from unlearning_jax.projections import leaves_of
from unlearning_jax.schedules import add_noise
from unlearning_jax.stable_diffusion import Params, StableDiffusion


class Rows(NamedTuple):
  """Noisy latents, and what the UNet is to predict of them.

  Attributes:
    noisy: x_t.
    t: their timesteps.
    context: text states.
    wanted: the noise, or the base's prediction.
  """

  noisy: Float[Array, "b h w c"]
  t: Int[Array, " b"]
  context: Float[Array, "b l d"]
  wanted: Float[Array, "b h w c"]


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
    return -self.squared(adapters, self.concept_rows(keys, rows))

  def concept_rows(
    self, keys: tuple[PRNGKeyArray, PRNGKeyArray], rows: int
  ) -> Rows:
    """What L is of; arguments as `concept`."""
    latents = self.batch["forget"][:rows]
    pair = self.batch["forget_pair"][:rows]
    t, noise = self._noise(latents, keys)
    noisy = add_noise(self.sd.schedule, latents, noise, t)
    return Rows(noisy, t, self.frozen["contexts"]["concept"][pair], noise)

  def remain_rows(self, key: PRNGKeyArray) -> Rows:
    """Where the base f_0 is held: what remains, and f_0's prediction of it."""
    latents = self.batch["remain"]
    context = self.frozen["contexts"]["remain"][self.batch["remain_pair"]]
    t, noise = self._noise(latents, jax.random.split(key))
    noisy = add_noise(self.sd.schedule, latents, noise, t)
    base = self.join({}, self.frozen["params"])
    wanted = stable_diffusion.predict_noise(self.sd, base, noisy, t, context)
    return Rows(noisy, t, context, wanted)

  def squared(self, adapters: Leaves, rows: Rows) -> Float[Array, ""]:
    """| f_theta - wanted |^2, a mean over rows and elements."""
    params = self.join(adapters, self.frozen["params"])
    found = stable_diffusion.predict_noise(
      self.sd, params, rows.noisy, rows.t, rows.context
    )
    return jnp.square(found - rows.wanted).mean()

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
    latents = its["latents"][row]
    t, noise = self._noise(latents, jax.random.split(keys[1]))
    params = self.join(adapters, self.frozen["params"])
    loss, _ = finetune.denoising_loss(
      self.sd, params, latents, noise, t, context
    )
    return loss

  def _noise(
    self, latents: Array, keys: Sequence[PRNGKeyArray] | PRNGKeyArray
  ) -> tuple[Array, Array]:
    steps = self.sd.schedule.num_train_timesteps
    t = jax.random.randint(keys[0], (len(latents),), 0, steps)
    return t, jax.random.normal(keys[1], latents.shape)
