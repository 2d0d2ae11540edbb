"""Concept Ablation: Ablating Concepts in Text-to-Image Diffusion Models.

What the model makes of the concept's prompt c shall be what it makes of the
anchor's, a. Images x of the anchor, drawn by the original model, are noised to
x_t, and

  model  min | f(x_t, t, c) - sg f(x_t, t, a) |^2
  noise  min | f(x_t, t, c) - n |^2

with n the noise that was added: the first makes f agree with itself, the second
trains on anchor images under the concept's caption. `anchor_loss_weight` is the
weight of |f(x_t, t, a) - n|^2, which holds the anchor. No gradient goes through
the keys and values of the start of text, which all prompts share.

The release can also train the concept's token embedding alone; this does not.

Reference: Kumari et al., ICCV 2023, https://arxiv.org/abs/2303.13516
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from unlearning_jax import finetune, stable_diffusion
from unlearning_jax.concepts import (
  Concept,
  check_choice,
  check_concepts,
  phrase_pairs,
)
from unlearning_jax.data import Batches
from unlearning_jax.edits import Edit, edit_between
from unlearning_jax.erasures import NO_HOOKS, Hooks, check_predicts_noise
from unlearning_jax.schedules import add_noise
from unlearning_jax.stable_diffusion import Params, StableDiffusion

LOSSES = ("model", "noise")
TRAINED = ("kv", "cross", "full")
# Images drawn in one batch.
_ROWS = 16
CHANGES = ("unet/*",)
NEEDS = "images"


@dataclasses.dataclass(frozen=True)
class Hparams:
  """Concept Ablation's hyperparameters.

  Attributes:
    loss: "model" or "noise".
    train: "kv", "cross" (cross-attention) or "full" (the UNet).
    num_images: anchor images to draw, over all concepts.
    expand_prompts: add the task's templates ("image of ...").
    anchor_loss_weight: weight of the anchors' own loss.
    num_steps: of training.
    learning_rate: of AdamW for a batch of one; the release multiplies it by
      the batch size, and so is it here.
    batch_size: images in one step.
    num_inference_steps: of drawing an anchor image, by DDIM.
    guidance_scale: of drawing an anchor image.
  """

  loss: str = "model"
  train: str = "kv"
  num_images: int = 1000
  expand_prompts: bool = True
  anchor_loss_weight: float = 0.0
  num_steps: int = 100
  learning_rate: float = 2e-6
  batch_size: int = 8
  num_inference_steps: int = 100
  guidance_scale: float = 6.0

  def __post_init__(self):
    check_choice("loss", self.loss, LOSSES)
    check_choice("train", self.train, TRAINED)
    if not 1 <= (batch_size := self.batch_size) <= self.num_images:
      raise ValueError(
        f"{batch_size=}; allowed: 1 to num_images={self.num_images}"
      )


def ablating_loss(
  sd: StableDiffusion,
  params: Params,
  latents: Float[Array, "b h w c"],
  noise: Float[Array, "b h w c"],
  t: Float[Array, "b"],
  concept: Float[Array, "b l d"],
  anchor: Float[Array, "b l d"],
  *,
  loss: str,
  anchor_loss_weight: float,
) -> Float[Array, ""]:
  """The objective above.

  Args:
    sd: the model.
    params: f.
    latents: x, of images of the anchor.
    noise: n.
    t: timesteps.
    concept: text states of c.
    anchor: text states of a.
    loss: "model" or "noise".
    anchor_loss_weight: weight of the anchor's own loss.
  """
  noisy = add_noise(sd.schedule, latents, noise, t)

  def predict(context: Array) -> Array:
    with nn.intercept_methods(_hold_start):
      return stable_diffusion.predict_noise(sd, params, noisy, t, context)

  wanted, held = noise, 0.0
  if loss == "model" or anchor_loss_weight:
    of_anchor = predict(anchor)
    held = jnp.square(of_anchor - noise).mean()
    if loss == "model":
      wanted = jax.lax.stop_gradient(of_anchor)
  return (
    jnp.square(predict(concept) - wanted).mean() + anchor_loss_weight * held
  )


def _hold_start(call, args, kwargs, context):
  """Stops the gradient of the first row of keys and values of the text."""
  out = call(*args, **kwargs)
  *_, block, name = ("", "", *context.module.path)
  if block != "attn2" or name not in ("to_k", "to_v"):
    return out
  return out.at[:, 0].set(jax.lax.stop_gradient(out[:, 0]))


def _loss(
  sd: StableDiffusion,
  join: Callable[[Params, Params], Params],
  trained: Params,
  frozen: Mapping[str, Any],
  batch: Mapping[str, Array],
  key: PRNGKeyArray,
  **options: Any,
) -> tuple[Float[Array, ""], finetune.Metrics]:
  keys = jax.random.split(key)
  latents = batch["latents"]
  noise = jax.random.normal(keys[0], latents.shape)
  steps = sd.schedule.num_train_timesteps
  t = jax.random.randint(keys[1], (len(latents),), 0, steps)
  concept, anchor = (
    frozen[name][batch["pair"]] for name in ("concept", "anchor")
  )
  params = join(trained, frozen["params"])
  value = ablating_loss(
    sd, params, latents, noise, t, concept, anchor, **options
  )
  return value, {}


def draw_anchors(
  sd: StableDiffusion,
  params: Params,
  anchors: Float[Array, "n l d"],
  empty: Float[Array, "1 l d"],
  num_images: int,
  key: PRNGKeyArray,
  collect: Callable[..., list[np.ndarray]],
  **sampling: Any,
) -> dict[str, np.ndarray]:
  """Latents of images of the anchors, in turn: `latents` and `pair`.

  An image's noise depends on its number alone.
  """
  pair = np.arange(num_images, dtype=np.int32) % len(anchors)

  def draw(batch: int) -> np.ndarray:
    rows = np.minimum(_ROWS * batch + np.arange(_ROWS), num_images - 1)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(rows)
    noise = jax.vmap(lambda k: jax.random.normal(k, sd.latent_shape))(keys)
    drawn = stable_diffusion.sample_latents(
      sd, params, anchors[pair[rows]], empty, noise, **sampling
    )
    return np.asarray(drawn)

  latents = collect("anchors", -(-num_images // _ROWS), draw)
  return {"latents": np.concatenate(latents)[:num_images], "pair": pair}


def _pairs(concepts: Sequence[Concept], expand: bool) -> list[tuple[str, str]]:
  """Phrases and anchors; an empty anchor fills no template, but is no prompt.

  Or images of the words around it would be drawn.
  """
  return [
    pair
    for concept in concepts
    for pair in phrase_pairs(
      [concept], expand=expand, template_anchors=bool(concept.anchor.strip())
    )
  ]


@functools.lru_cache(maxsize=8)
def _training(
  sd: StableDiffusion, join: Callable[[Params, Params], Params], h: Hparams
) -> tuple[finetune.Loss, optax.GradientTransformation]:
  """Loss and optimizer: the same objects again, the same program."""
  tx = finetune.optimizer(
    h.learning_rate * h.batch_size, h.num_steps, schedule="constant", warmup=0,
    decay_all=True, clip_norm=None, b2=0.999,
  )  # fmt: skip
  return functools.partial(
    _loss, sd, join, loss=h.loss, anchor_loss_weight=h.anchor_loss_weight
  ), tx


def erase(
  sd: StableDiffusion,
  params: Params,
  concepts: Sequence[Concept],
  key: PRNGKeyArray,
  h: Hparams,
  hooks: Hooks = NO_HOOKS,
) -> Edit:
  """Erases `concepts` by Concept Ablation; what they preserve is unused.

  Args:
    sd: the model.
    params: its parameters.
    concepts: what to erase, and towards what.
    key: for the anchors' images, noise and timesteps.
    h: the hyperparameters.
    hooks: `collect` and `trainer` are used.

  Raises:
    ValueError: a concept that is not usable; a model that predicts no noise.
    FloatingPointError: the training diverges.
  """
  check_concepts(concepts)
  check_predicts_noise(sd, "Concept Ablation")
  erased, anchors = zip(*_pairs(concepts, h.expand_prompts), strict=True)
  concept, anchor, empty = (
    stable_diffusion.encode_text(sd, params, stable_diffusion.tokenize(sd, p))
    for p in (erased, anchors, [""])
  )
  keys = jax.random.split(key)
  drawn = draw_anchors(
    sd, params, anchor, empty, h.num_images, keys[0], hooks.collect,
    sampler="ddim", num_inference_steps=h.num_inference_steps,
    guidance_scale=h.guidance_scale,
  )  # fmt: skip
  part = finetune.partition({"unet": params["unet"]}, h.train)
  loss, tx = _training(sd, part.join, h)
  trained = hooks.trainer(
    loss,
    tx,
    part.trained,
    {"params": part.frozen, "concept": concept, "anchor": anchor},
    Batches(drawn, h.batch_size, int(jax.random.bits(keys[1]) >> 1)),
    keys[1],
    batch_size=h.batch_size,
    num_steps=h.num_steps,
  )
  return edit_between(
    params,
    {**params, **part.join(trained, part.frozen)},
    method="concept_ablation",
    concepts=concepts,
    diagnostics={},
  )
