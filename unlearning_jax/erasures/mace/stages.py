"""MACE's steps from phrases to trained adapters; `mace` has the equations."""

import dataclasses
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float64, PRNGKeyArray, UInt8

from unlearning_jax import sharding
from unlearning_jax.closed_form import mass
from unlearning_jax.concepts import Concept, preserved_phrases, same_phrase
from unlearning_jax.erasures.mace import images as image
from unlearning_jax.erasures.mace import masks as mask
from unlearning_jax.erasures.mace import suppress, text
from unlearning_jax.erasures.mace.fusion import Fusion, Part
from unlearning_jax.erasures.mace.options import Hparams, read_captions
from unlearning_jax.projections import base_fingerprint, with_kernels
from unlearning_jax.stable_diffusion import Params, StableDiffusion


def concept_keys(key: PRNGKeyArray, concept: Concept) -> PRNGKeyArray:
  """Keys for the concept's templates, images, masks and adapter.

  They depend on its phrase, not on the other concepts or on their order.
  """
  name = same_phrase(concept.erase).encode()
  return jax.random.split(jax.random.fold_in(key, zlib.crc32(name)), 4)


def preserved_gram(
  sd: StableDiffusion,
  params: Params,
  captions: str | Sequence[str],
  preserve: Iterable[str] = (),
  domain_weight: float = 1.0,
  cache: str | None = None,
  rows: float | None = None,
) -> Float64[np.ndarray, "d d"]:
  """C, the sum of e e^T over captions, plus `domain_weight` times that over
  `preserve`.

  Every token of every text counts, and one matrix serves all layers.

  Args:
    params: the base.
    captions: texts, or the name of a file with one text a line.
    preserve: the domain's phrases.
    domain_weight: the weight of each token of `preserve`.
    cache: a folder, see `closed_form.mass.held_sums`.
    rows: the weight of all captions together; None gives each token weight 1.
  """
  if isinstance(captions, str):
    captions = read_captions(captions)
  usual, kept = (
    mass.held_sums(sd, params, sharding.make_mesh(), list(texts), cache=cache)
    for texts in (captions, preserve)
  )
  if rows is not None and usual.preserved:
    usual = (rows / usual.preserved) * usual
  return (usual + domain_weight * kept).gram


def speak(
  sd: StableDiffusion,
  params: Params,
  concepts: Sequence[Concept],
  key: PRNGKeyArray,
  h: Hparams,
) -> list[text.Words]:
  """Chooses and encodes each concept's prompts."""
  variant, said = h.variant, []
  for concept in concepts:
    bits = jax.random.key_data(concept_keys(key, concept)[0])
    rng = np.random.default_rng(np.asarray(bits))
    templates = text.choose_templates(
      concept, h.templates or text.TEMPLATES, h.num_prompts, rng
    )
    said.append(
      text.encode_concept(
        sd,
        params,
        concept,
        templates,
        tokens=variant.target_tokens,
        by_ends=variant.by_ends,
      )
    )
  return said


def start(
  sd: StableDiffusion,
  params: Params,
  concepts: Sequence[Concept],
  said: Sequence[text.Words],
  h: Hparams,
) -> Fusion:
  """The statistics of both closed forms, still without adapters."""
  scale = h.preserve_scale
  # Captions weigh as much as the concepts' rows. Thousands with weight 1 would
  # hold the concepts' own words too.
  rows = sum(words.sums.erased for words in said)
  return Fusion(
    base_fingerprint(params),
    tuple(
      Part(concept.erase, words.sums, words.gram, {})
      for concept, words in zip(concepts, said, strict=True)
    ),
    preserved_gram(
      sd,
      params,
      h.captions or (),
      preserved_phrases(concepts),
      h.domain_weight,
      h.cache,
      None if h.variant.count_captions else rows,
    ),
    refine_scale=scale**2 if h.variant.twice else scale,
    fuse_scale=h.fuse_scale,
    lamb=h.lamb,
  )


def train(
  sd: StableDiffusion,
  params: Params,
  concepts: Sequence[Concept],
  key: PRNGKeyArray,
  said: Sequence[text.Words],
  begun: Fusion,
  h: Hparams,
) -> tuple[Fusion, dict[str, Any]]:
  """Stages (i) and (ii); returns the fusion's statistics and a report."""
  refined = with_kernels(params, begun.refine(params)[0])
  runs, report = [], {}
  for concept, words in zip(concepts, said, strict=True):
    keys = concept_keys(key, concept)
    images, masks, origin = image.examples(sd, params, concept, h, keys[1])
    run, record = _run(sd, params, concept, keys[2:], words, images, masks, h)
    runs.append(run)
    report[concept.erase] = {"images": origin, **record}
  adapters, losses = suppress.train(
    sd,
    refined,
    runs,
    rank=h.rank,
    form=h.variant.loss_form,
    pack=h.pack,
  )
  for run, loss in zip(runs, losses, strict=True):
    report[run.name] |= {"loss": [float(loss[0]), float(loss[-1])]}
  parts = [
    dataclasses.replace(part, adapters=trained)
    for part, trained in zip(begun.parts, adapters, strict=True)
  ]
  return dataclasses.replace(begun, parts=tuple(parts)), report


def _run(
  sd: StableDiffusion,
  params: Params,
  concept: Concept,
  keys: PRNGKeyArray,
  words: text.Words,
  images: UInt8[np.ndarray, "m H W 3"],
  found: UInt8[np.ndarray, "m H W"] | None,
  h: Hparams,
) -> tuple[suppress.Run, dict[str, Any]]:
  """One concept's images, masks and steps, with its part of the report."""
  variant = h.variant
  recipe, source = h.recipe_of(concept), h.source_of(concept)
  mean, std = image.encode_images(sd, params, images, variant.pixels)
  latents = image.encode_images(sd, params, images, "vae")[0]
  masks, full = mask.choose(
    sd, params, concept.erase, source, found, latents, words, keys[0]
  )
  total = sd.schedule.num_train_timesteps
  focus = h.focus if recipe.focal else ()
  law = suppress.focal_law(total, *focus) if focus else np.ones(total) / total
  plan = suppress.make_plan(
    keys[1],
    len(images),
    len(words.states),
    recipe.num_steps,
    h.batch_size,
    law,
  )
  layers = mask.for_layers(sd, list(masks), variant.resize)
  seen = suppress.Examples(mean, std, layers, words.states, words.targets)
  run = suppress.Run(concept.erase, keys[1], seen, plan, recipe.learning_rate)
  return run, {
    "mask_source": source,
    "full_instead": full,
    "mask_area": float(masks.mean()),
    "learning_rate": recipe.learning_rate,
    "num_steps": recipe.num_steps,
    "focus": list(focus),
  }
