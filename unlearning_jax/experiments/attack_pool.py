"""The images of a concept that Concept Inversion learns from."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from unlearning_jax import attacks, sampling, sharding, stable_diffusion
from unlearning_jax.attacks.engine import insertion, rows
from unlearning_jax.attacks.engine.victim import Pool

# Where a caption has its word.
MARK = "{}"


def pool_of(
  config: Any,
  sd: stable_diffusion.StableDiffusion,
  params: Any,
  attack: attacks.Attack,
  mesh: Any,
) -> Pool | None:
  """The images of the concept that an inversion learns from, by the original.

  Args:
    config: `pool.concept` is drawn in `pool.templates`, `pool.images` times in
      all, from seeds of its own.
    sd: the model.
    params: the original's.
    attack: says how many tokens the word has.
    mesh: of this process's devices.

  Raises:
    ValueError: as `captions_of`.
  """
  captions = captions_of(config, sd, attack)
  if captions is None:
    return None
  given = config.pool
  seeds = range(given.first_seed, given.first_seed + given.images)
  where = sharding.batch_sharding(mesh)
  images = sampling.generate(
    sd, params, captions.named, [*seeds], **config.sampling,
    batch_size=sharding.local_rows_multiple(mesh),
    place=lambda tree: sharding.place(tree, where), fetch=sharding.local_rows,
  )  # fmt: skip
  latents = rows.target_latents(sd, params, images)
  every = (latents, captions.ids, captions.source, captions.named_ids)
  return Pool(*map(jnp.asarray, every))


class Captions(NamedTuple):
  """Of a pool's images: as they name the concept, and with the word instead."""

  named: list[str]
  named_ids: np.ndarray
  ids: np.ndarray
  source: np.ndarray


def captions_of(
  config: Any, sd: stable_diffusion.StableDiffusion, attack: attacks.Attack
) -> Captions | None:
  """The captions of the pool that an inversion learns from, if it has one.

  Raises:
    ValueError: a caption that leaves no room for the word, or is too long.
  """
  mode, given = getattr(attack.h, "pool", ""), config.pool
  if not mode:
    return None
  captions = [given.templates[i % len(given.templates)]
              for i in range(given.images)]  # fmt: skip
  named = [caption.replace(MARK, given.concept) for caption in captions]
  if mode == "own":
    # The word stands before the whole prompt, as in the paper.
    captions = [f"{MARK} {text}" for text in named]
  ids, source = _captions(sd, captions, attack.h.k)
  return Captions(named, stable_diffusion.tokenize(sd, named), ids, source)


def _captions(
  sd: stable_diffusion.StableDiffusion, captions: Sequence[str], k: int
) -> tuple[np.ndarray, np.ndarray]:
  """Ids of captions without their word, and where it stands in them."""
  texts = [" ".join(c.replace(MARK, " ").split()) for c in captions]
  fronts = [" ".join(c.split(MARK)[0].split()) for c in captions]
  ids = stable_diffusion.tokenize(sd, texts)
  ends = (ids == sd.tokenizer.eos_token_id).argmax(axis=1) - 1
  source = [
    insertion.between(
      len(sd.tokenizer(front)["input_ids"]) - 2, int(n), k, ids.shape[1], text
    )
    for front, n, text in zip(fronts, ends, texts, strict=True)
  ]
  return ids, np.stack(source)
