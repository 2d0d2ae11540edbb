"""The images of a concept that Concept Inversion learns from."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from unlearning_jax import sampling, stable_diffusion, stops
from unlearning_jax.attacks.engine import insertion
from unlearning_jax.attacks.engine import rows as engine_rows
from unlearning_jax.attacks.engine import victim as engine
from unlearning_jax.experiments.attack.rows import layout
from unlearning_jax.experiments.attack.settings import MARK
from unlearning_jax.experiments.attack.victims import Setup
from unlearning_jax.stable_diffusion import StableDiffusion


class Captions(NamedTuple):
  """The captions of a pool: with the concept's name, and with the new word."""

  named: list[str]
  named_ids: np.ndarray
  ids: np.ndarray
  source: np.ndarray


def pool_of(setup: Setup, wanted: bool = True) -> engine.Pool | None:
  """Draws the images that an inversion learns from, with the original model.

  The captions of `pool.templates` take turns for `pool.num_images` images of
  `pool.concept`, with seeds from `pool.first_seed`.

  Raises:
    ValueError: as `captions_of`.
  """
  captions = captions_of(setup) if wanted else None
  if captions is None:
    return None
  given, params = setup.given, setup.original.params
  seeds = range(
    given.pool.first_seed, given.pool.first_seed + given.pool.num_images
  )
  asked = [*map(sampling.Request, captions.named, seeds)]
  images = sampling.draw(
    setup.sd, params, asked, given.sampling, **layout(setup.mesh)
  )
  latents = engine_rows.target_latents(setup.sd, params, _stopping(images))
  every = (latents, captions.ids, captions.source, captions.named_ids)
  return engine.Pool(*map(jnp.asarray, every))


def _stopping(images: Iterable[sampling.Images]) -> Iterator[sampling.Images]:
  """The same images; a signal stops the run after any."""
  for some in images:
    stops.check()
    yield some


def captions_of(setup: Setup) -> Captions | None:
  """The captions of the pool; None for attacks without a pool.

  Raises:
    ValueError: a caption leaves no room for the word, or is too long.
  """
  mode, given = getattr(setup.attack.h, "pool", ""), setup.given.pool
  if not mode:
    return None
  captions = [given.templates[i % len(given.templates)]
              for i in range(given.num_images)]  # fmt: skip
  named = [caption.replace(MARK, given.concept) for caption in captions]
  if mode == "own":
    # The word stands before the whole prompt, as in the paper.
    captions = [f"{MARK} {text}" for text in named]
  ids, source = _captions(setup.sd, captions, setup.attack.h.num_tokens)
  named_ids = stable_diffusion.tokenize(setup.sd, named)
  return Captions(named, named_ids, ids, source)


def _captions(
  sd: StableDiffusion, captions: Sequence[str], k: int
) -> tuple[np.ndarray, np.ndarray]:
  """Ids of captions without their word, and the word's place in them."""
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
