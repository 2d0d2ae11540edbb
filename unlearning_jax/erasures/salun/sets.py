"""The images that SalUn and EraseDiff forget and keep; the base draws them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from unlearning_jax import finetune, stable_diffusion
from unlearning_jax.concepts import (
  Concept,
  check_unnamed,
  naming,
  preserved_phrases,
)
from unlearning_jax.data import Batches
from unlearning_jax.erasures import check_batch, check_images
from unlearning_jax.finetune.drawn import spread
from unlearning_jax.settings import check_numbers
from unlearning_jax.stable_diffusion import Params, StableDiffusion

Images = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
  """How the images are drawn.

  Attributes:
    template: the sentence that holds a phrase, at "{}".
    num_images: the number of images of each set, over all phrases.
    batch_size: images of each set in one step.
    num_inference_steps: DDIM steps that draw an image.
    guidance_scale: guidance scale of the images.
  """

  template: str = "{}"
  num_images: int = 800
  batch_size: int = 8
  num_inference_steps: int = 50
  guidance_scale: float = 7.5

  def __post_init__(self):
    if "{}" not in self.template:
      raise ValueError(
        f"template={self.template!r}: has no place for a phrase; give '{{}}' "
        "or 'a photo of {}'"
      )
    check_batch(self.batch_size, self.num_images)
    check_numbers(
      self, counts=("num_images", "batch_size", "num_inference_steps"),
      finite=("guidance_scale",),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Sets:
  """Both sets, and the text states that their rows point to.

  Attributes:
    forget: `latents` and `pair`, the row in `concept` and `anchor`.
    remain: `latents` and `pair`, the row in `remain`.
    contexts: `concept`, `anchor` and `remain`, (n, l, d) each, and `empty`.
  """

  forget: Images
  remain: Images
  contexts: Mapping[str, Float[Array, "n l d"]]


def remaining(method: str, concepts: Sequence[Concept]) -> tuple[str, ...]:
  """What concepts preserve; where they preserve nothing, their anchors.

  An anchor that names a concept does not remain.

  Raises:
    ValueError: a preserved phrase names a concept, or there is nothing but the
      empty prompt.
  """
  check_unnamed(concepts)
  anchors = dict.fromkeys(c.anchor for c in concepts if c.anchor.strip())
  gone = naming(anchors, [concept.erase for concept in concepts])
  found = preserved_phrases(concepts) or tuple(
    anchor for anchor in anchors if anchor not in gone
  )
  if not found:
    raise ValueError(
      f"{method}: no concept preserves anything, and anchors are empty or "
      "erased, so nothing remains to be drawn; name phrases to keep, "
      "preserve=('a cat', 'a house'), or an anchor"
    )
  return found


def draw(
  sd: StableDiffusion,
  params: Params,
  concepts: Sequence[Concept],
  key: PRNGKeyArray,
  h: Any,
  collect: Callable[..., list[np.ndarray]],
  method: str,
) -> Sets:
  """Draws images of the concepts, and of what remains.

  Args:
    params: the base.
    h: a `Drawing`, with a `preset`.
    collect: `Hooks.collect`.
    method: the erasure's name, for messages.

  Raises:
    ValueError: a phrase is too long; there are more concepts than images, or,
      where all steps see one batch, than images in a batch; `remaining` refuses
      the concepts.
  """
  check_images(concepts, h.num_images)
  if h.preset == "reference" and len(concepts) > h.batch_size:
    raise ValueError(
      f"batch_size={h.batch_size}: with preset='reference' every step sees the "
      f"same batch, in which {len(concepts)} concepts have no room; give "
      f"hparams.batch_size={len(concepts)}"
    )
  kept = spread(remaining(method, concepts), h.num_images)
  texts = {
    "concept": [h.template.format(concept.erase) for concept in concepts],
    # An empty anchor stays the empty prompt.
    "anchor": [
      h.template.format(concept.anchor) if concept.anchor else ""
      for concept in concepts
    ],
    "remain": [h.template.format(phrase) for phrase in kept],
    "empty": [""],
  }
  contexts = {
    name: stable_diffusion.encode_text(
      sd, params, stable_diffusion.tokenize(sd, found)
    )
    for name, found in texts.items()
  }
  keys = jax.random.split(key)
  forget, remain = (
    finetune.draw_latents(
      sd, params, contexts[prompts], contexts["empty"], h.num_images, key,
      collect, name, sampler="ddim",
      num_inference_steps=h.num_inference_steps,
      guidance_scale=h.guidance_scale,
    )
    for key, prompts, name in zip(
      keys, ("concept", "remain"), ("forget", "remain"), strict=True
    )
  )  # fmt: skip
  return Sets(forget, remain, contexts)


@dataclasses.dataclass(frozen=True)
class Steps:
  """A batch of both sets for each step.

  Attributes:
    sets: the images.
    batch_size: rows of each set.
    seed: of the shuffling.
    repeats: whether every step begins a new pass, as in the releases. The
      images to forget are then the same first batch at every step.
    shuffles: whether the images that remain are shuffled at each new pass.
  """

  sets: Sets
  batch_size: int
  seed: int
  repeats: bool = False
  shuffles: bool = True

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    forget, remain = (
      self._rows(images, step, salt, shuffles)
      for salt, (images, shuffles) in enumerate(
        ((self.sets.forget, False), (self.sets.remain, self.shuffles))
      )
    )
    return {
      "forget": forget["latents"], "forget_pair": forget["pair"],
      "remain": remain["latents"], "remain_pair": remain["pair"],
    }  # fmt: skip

  def _rows(self, images: Images, step: int, salt: int, shuffles: bool):
    if not self.repeats:
      return Batches(images, self.batch_size, self.seed + salt)[step]
    rows = np.arange(len(images["pair"]))
    if shuffles:
      rows = np.random.default_rng((self.seed, step)).permutation(rows)
    return {
      name: array[rows[: self.batch_size]] for name, array in images.items()
    }
