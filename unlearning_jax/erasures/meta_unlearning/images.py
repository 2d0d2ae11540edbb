"""The images that Meta-Unlearning tunes on and holds; the base draws them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from unlearning_jax import finetune, stable_diffusion
from unlearning_jax.concepts import (
  Concept,
  check_unnamed,
  naming,
  preserved_phrases,
  without_erased,
)
from unlearning_jax.erasures.meta_unlearning.terms import SETS
from unlearning_jax.erasures.salun import sets
from unlearning_jax.stable_diffusion import Params, StableDiffusion


def phrases(
  concepts: Sequence[Concept], related: Sequence[str] = ()
) -> dict[str, tuple[str, ...]]:
  """The phrases of each set, by the set's name.

  Args:
    concepts: what is erased; what they preserve is irrelevant.
    related: what is related; () for the anchors that are not erased.

  Raises:
    ValueError: a phrase to keep names a concept; nothing is related, or
      everything is.
  """
  check_unnamed(concepts)
  erased = tuple(concept.erase for concept in concepts)
  anchors = tuple(dict.fromkeys(c.anchor for c in concepts if c.anchor.strip()))
  for phrase, name in naming(related, erased).items():
    raise ValueError(
      f"related: {phrase!r} names {name!r}, which is erased; take it out of "
      "hparams.related"
    )
  gone = naming(anchors, erased)
  related = tuple(related) or tuple(a for a in anchors if a not in gone)
  if not related:
    raise ValueError(
      "Meta-Unlearning: related=() and no concept has an anchor that stays, so "
      "nothing is related to what is erased; name phrases that are, as in "
      "hparams.related=('a person',), or give an anchor"
    )
  irrelevant = without_erased(preserved_phrases(concepts), related)
  if not irrelevant:
    raise ValueError(
      "Meta-Unlearning: the concepts preserve nothing but what is related; "
      "name unrelated phrases too, as in preserve=('a cat', 'a house')"
    )
  return dict(zip(SETS, (erased, related, irrelevant), strict=True))


def draw(
  sd: StableDiffusion,
  params: Params,
  ids: Mapping[str, Any],
  key: PRNGKeyArray,
  h: sets.Drawing,
  collect: Callable[..., list[np.ndarray]],
) -> dict[str, Any]:
  """Draws the sets of images by the base, in the form that `Losses` reads.

  Args:
    params: the base's.
    ids: set -> token ids of its sentences.
    collect: `Hooks.collect`.
  """
  empty, *contexts = (
    stable_diffusion.encode_text(sd, params, own)
    for own in (stable_diffusion.tokenize(sd, [""]), *ids.values())
  )
  drawn = [
    # A wrapped method may draw sets too, under other names.
    finetune.draw_latents(
      sd, params, context, empty, h.num_images, own, collect, f"meta_{name}",
      sampler="ddim", num_inference_steps=h.num_inference_steps,
      guidance_scale=h.guidance_scale,
    )
    for name, context, own in zip(
      ids, contexts, jax.random.split(key, len(ids)), strict=True
    )
  ]  # fmt: skip
  first = np.cumsum([0, *map(len, contexts[:-1])])
  tuning = {
    "latents": np.concatenate([one["latents"] for one in drawn]),
    "pair": np.concatenate(
      [one["pair"] + i for one, i in zip(drawn, first, strict=True)]
    ),
    "rows": np.arange(len(drawn) * h.num_images).reshape(len(drawn), -1),
    "sizes": np.full(len(drawn), h.num_images),
  }
  return {"contexts": {"remain": jnp.concatenate(contexts)}, "tuning": tuning}
