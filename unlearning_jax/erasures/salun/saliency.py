"""The weights that SalUn lets move: those with the largest gradients.

With x the base's images of the concept c, noise n and the guidance scale s,

  g = sum over batches of the gradient of
      - | n - (1 + s) f(x_t, t, c) + s f(x_t, t, 0) |^2

An entry of a weight is salient where |g| is among the largest over the whole
UNet. The gradients are summed with their signs, as in the release.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from unlearning_jax import sharding, stable_diffusion
from unlearning_jax.erasures.salun.sets import Sets
from unlearning_jax.finetune.partition import join_leaves
from unlearning_jax.schedules import add_noise
from unlearning_jax.stable_diffusion import Params, StableDiffusion

Leaves = Mapping[str, Any]
_HALF = 1 << 16


def guided_loss(
  sd: StableDiffusion,
  params: Params,
  latents: Float[Array, "b h w c"],
  noise: Float[Array, "b h w c"],
  t: Float[Array, " b"],
  contexts: tuple[Float[Array, "b l d"], Float[Array, "1 l d"]],
  guidance: float,
) -> Float[Array, ""]:
  """The negative loss of which g is the gradient.

  Args:
    params: f.
    latents: x.
    noise: n.
    contexts: text states of c, and of the empty prompt.
    guidance: s.
  """
  concept, empty = contexts
  noisy = add_noise(sd.schedule, latents, noise, t)
  both = jnp.concatenate([concept, jnp.broadcast_to(empty, concept.shape)])
  towards, away = jnp.split(
    stable_diffusion.predict_noise(
      sd, params, jnp.tile(noisy, (2, 1, 1, 1)), jnp.tile(t, 2), both
    ),
    2,
  )
  guided = (1 + guidance) * towards - guidance * away
  return -jnp.square(noise - guided).mean()


@functools.partial(
  jax.jit, static_argnames=("sd", "guidance"), donate_argnames=("total",)
)
def _add(sd, total, unet, batch, contexts, key, *, guidance):
  """`total` and the gradient of one batch."""
  keys = jax.random.split(key)
  latents = batch["latents"]
  noise = jax.random.normal(keys[0], latents.shape)
  steps = sd.schedule.num_train_timesteps
  t = jax.random.randint(keys[1], (len(latents),), 0, steps)
  states = (contexts["concept"][batch["pair"]], contexts["empty"])

  def loss(leaves):
    params = join_leaves(leaves, {})
    return guided_loss(sd, params, latents, noise, t, states, guidance)

  return jax.tree.map(jnp.add, total, jax.grad(loss)(unet))


def scores(
  sd: StableDiffusion,
  unet: Leaves,
  sets: Sets,
  key: PRNGKeyArray,
  *,
  batch_size: int,
  guidance: float,
) -> dict[str, Float[np.ndarray, "..."]]:
  """|g| of every leaf, by one pass over the images to forget.

  Args:
    unet: leaves of the UNet by path.
    sets: those of `sets.draw`.
    key: draws noise and timesteps.
    batch_size: images in one gradient; the last batch may be short.
    guidance: s.
  """
  contexts = {name: sets.contexts[name] for name in ("concept", "empty")}
  # Once to the devices, not with every batch.
  unet = sharding.on_device(dict(unet))
  total = jax.tree.map(jnp.zeros_like, unet)
  for i in range(-(-len(sets.forget["pair"]) // batch_size)):
    rows = slice(i * batch_size, (i + 1) * batch_size)
    batch = {name: array[rows] for name, array in sets.forget.items()}
    total = _add(
      sd, total, unet, batch, contexts, jax.random.fold_in(key, i),
      guidance=guidance,
    )  # fmt: skip
  return {path: np.abs(np.asarray(g, np.float32)) for path, g in total.items()}


def largest(leaves: Iterable[np.ndarray], count: int) -> np.float32:
  """The `count`-th largest of all non-negative float32 entries, unsorted.

  The bits of such numbers have the order of the numbers. So two histograms, of
  the upper and of the lower 16 bits, find it; 860 million entries need no more
  memory than their largest leaf.
  """
  bits = [np.ravel(leaf).view(np.uint32) for leaf in leaves]
  upper, count = _bucket((leaf >> 16 for leaf in bits), count)
  inside = (leaf[leaf >> 16 == upper] & (_HALF - 1) for leaf in bits)
  lower, _ = _bucket(inside, count)
  return np.uint32(upper * _HALF + lower).view(np.float32)


def _bucket(values: Iterable[np.ndarray], count: int) -> tuple[int, int]:
  """The bucket of the `count`-th largest value, and its rank in there."""
  histogram = sum(np.bincount(v, minlength=_HALF) for v in values)
  above = np.cumsum(np.asarray(histogram)[::-1])[::-1]
  bucket = int(np.flatnonzero(above >= count)[-1])
  higher = int(above[bucket + 1]) if bucket + 1 < _HALF else 0
  return bucket, count - higher


def mask(
  found: Mapping[str, Float[np.ndarray, "..."]], keep: float
) -> dict[str, Bool[np.ndarray, "..."]]:
  """Where a score is among the largest `keep` of all leaves together.

  Equal scores at the threshold are all kept. The release keeps some of them.

  Raises:
    ValueError: a score is not finite, or too many are zero, so that the mask
      would keep weights without a gradient.
  """
  size = sum(leaf.size for leaf in found.values())
  for path, leaf in found.items():
    if not np.isfinite(leaf).all():
      raise ValueError(f"salun: the saliency of {path} holds NaN or infinity")
  threshold = largest(found.values(), max(1, round(keep * size)))
  made = {path: leaf >= threshold for path, leaf in found.items()}
  kept = sum(int(leaf.sum()) for leaf in made.values())
  if kept == size or threshold <= 0:
    raise ValueError(
      f"salun: the mask keeps {kept} of {size} weights, because {keep=} "
      "reaches those without a gradient; lower hparams.keep, or let "
      "everything move with saliency='none'"
    )
  return made


def pack(made: Mapping[str, Bool[np.ndarray, "..."]]) -> np.ndarray:
  """A mask as bytes, eight entries in each, to keep in a file."""
  return np.packbits(np.concatenate([np.ravel(m) for m in made.values()]))


def unpack(packed: np.ndarray, leaves: Leaves) -> dict[str, np.ndarray]:
  """The mask of these leaves, from the bytes of `pack`."""
  bits = np.unpackbits(packed).astype(bool)
  made, start = {}, 0
  for path, leaf in leaves.items():
    made[path] = bits[start : start + leaf.size].reshape(leaf.shape)
    start += leaf.size
  return made
