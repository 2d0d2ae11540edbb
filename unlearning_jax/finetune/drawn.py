"""Latents that a model draws, for an erasure to train on."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from unlearning_jax import stable_diffusion
from unlearning_jax.stable_diffusion import Params, StableDiffusion

# Images drawn in one batch.
_ROWS = 16


def draw_latents(
  sd: StableDiffusion,
  params: Params,
  prompts: Float[Array, "n l d"],
  empty: Float[Array, "1 l d"],
  num_images: int,
  key: PRNGKeyArray,
  collect: Callable[..., list[np.ndarray]],
  name: str,
  **sampling: Any,
) -> dict[str, np.ndarray]:
  """Draws images of prompts, which take turns.

  An image's noise depends on its number alone.

  Args:
    params: the base.
    prompts: text states.
    empty: text states of the empty prompt.
    num_images: how many to draw.
    collect: `Hooks.collect`, which keeps the batches under `name`.
    **sampling: arguments of `stable_diffusion.sample_latents`.

  Returns:
    `latents` (images, h, w, c) and `pair`, the row of each image's prompt.
  """
  pair = np.arange(num_images, dtype=np.int32) % len(prompts)

  def draw(batch: int) -> np.ndarray:
    rows = np.minimum(_ROWS * batch + np.arange(_ROWS), num_images - 1)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(rows)
    noise = jax.vmap(lambda k: jax.random.normal(k, sd.latent_shape))(keys)
    drawn = stable_diffusion.sample_latents(
      sd, params, prompts[pair[rows]], empty, noise, **sampling
    )
    return np.asarray(drawn)

  latents = collect(name, -(-num_images // _ROWS), draw)
  return {"latents": np.concatenate(latents)[:num_images], "pair": pair}


def spread(phrases: Sequence[str], count: int) -> tuple[str, ...]:
  """At most `count` of the phrases, evenly over the list."""
  kept = min(count, len(phrases))
  return tuple(phrases[i * len(phrases) // kept] for i in range(kept))
