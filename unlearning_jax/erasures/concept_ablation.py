"""Concept Ablation: Ablating Concepts in Text-to-Image Diffusion Models.

The concept's prompt c learns to draw what the anchor's prompt a draws. The base
draws images x of the anchor, which are noised to x_t with noise n. Then one of
two losses trains the network f:

  model  min | f(x_t, t, c) - sg f(x_t, t, a) |^2
  noise  min | f(x_t, t, c) - n |^2

`model` makes f predict the same for both prompts; sg stops the gradient.
`noise` trains on the anchor's images with the concept's caption. Both may add
`anchor_loss_weight` times |f(x_t, t, a) - n|^2, which holds the anchor. No
gradient flows through the keys and values of the start of text, which all
prompts share.

The release can also train the concept's token embedding alone; this module
cannot.

Reference: Kumari et al., ICCV 2023, https://arxiv.org/abs/2303.13516
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
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
from unlearning_jax.edits import Edit
from unlearning_jax.erasures import (
  NO_HOOKS,
  Hooks,
  check_batch,
  check_images,
  check_predicts_noise,
  edit_of,
)
from unlearning_jax.schedules import add_noise
from unlearning_jax.stable_diffusion import Params, StableDiffusion

LOSSES = ("model", "noise")
TRAINED = ("kv", "cross", "full")
CHANGES = ("unet/*",)
NEEDS = "images"


@dataclasses.dataclass(frozen=True)
class Hparams:
  """Concept Ablation's hyperparameters.

  Attributes:
    loss: "model" or "noise".
    train: "kv" for cross-attention's keys and values, "cross" for all of
      cross-attention, "full" for the whole UNet.
    num_images: the number of anchor images, over all concepts.
    expand_prompts: also use the phrases in the task's templates, as "image of
      ...".
    anchor_loss_weight: weight of the loss that holds the anchor.
    num_steps: training steps.
    learning_rate: AdamW's for one image; as in the release, it is multiplied by
      the batch size.
    batch_size: images in one step.
    num_inference_steps: DDIM steps that draw an anchor image.
    guidance_scale: guidance scale of the anchor images.
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
    check_batch(self.batch_size, self.num_images)


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
  """The objective above, a mean over rows and elements.

  Args:
    params: f.
    latents: x, latents of the anchor's images.
    noise: n.
    t: timesteps.
    concept: text states of c.
    anchor: text states of a.
    loss: "model" or "noise".
    anchor_loss_weight: weight of |f(x_t, t, a) - n|^2.
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
  """Stops the gradient of the start of text's keys and values."""
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


def _pairs(concepts: Sequence[Concept], expand: bool) -> list[tuple[str, str]]:
  """Pairs of phrase and anchor, in templates if `expand`.

  An empty anchor stays empty: a template around it would draw its other words.
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
  """Loss and optimizer; cached, so that a second call compiles nothing.

  A jitted step is keyed by these objects' identity.
  """
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
  """Erases `concepts` by Concept Ablation.

  Arguments as `Erasure`. The method ignores what concepts preserve; it uses
  `hooks.collect` and `hooks.trainer`.

  Raises:
    ValueError: an unusable concept, several with fewer images than phrases, or
      a model that does not predict the noise.
    FloatingPointError: the training diverges.
  """
  check_concepts(concepts)
  check_predicts_noise(sd, "Concept Ablation")
  erased, anchors = zip(*_pairs(concepts, h.expand_prompts), strict=True)
  # One concept may have fewer images than templates. Of several, the last ones
  # would have none.
  if len(concepts) > 1:
    check_images(erased, h.num_images)
  concept, anchor, empty = (
    stable_diffusion.encode_text(sd, params, stable_diffusion.tokenize(sd, p))
    for p in (erased, anchors, [""])
  )
  keys = jax.random.split(key)
  drawn = finetune.draw_latents(
    sd, params, anchor, empty, h.num_images, keys[0], hooks.collect, "anchors",
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
  return edit_of(params, part, trained, "concept_ablation", concepts)
