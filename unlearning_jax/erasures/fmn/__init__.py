"""FMN: Forget-Me-Not (Zhang et al., 2023), by attention re-steering.

The base draws images x of the concept. The UNet learns to give the words of
the concept no attention in its cross-attention layers:

  min  | A(x_t, t, c) at the positions P |_2 ,

the norm of all attention probabilities A, over layers, heads, cells of the
image and P, the tokens of the concept in the prompt c. Nothing holds other
concepts but the few steps.

Two versions exist, each a preset:

  fixed      P is the concept's tokens and the first end of text.
  reference  the release. It marks every token that equals the end of text. With
             Stable Diffusion 1's tokenizer that is all the padding as well: for
             "a photo of a church" 71 of 77 tokens.

The norm is one over a batch, so its gradient shrinks as a batch grows. The
release has batches of one.

The release first learns four new words for the concept (`words`), and puts them
in place of its name. With `words=0` the name stays, which it can do too.

Reference: https://arxiv.org/abs/2303.17591, and its release
SHI-Labs/Forget-Me-Not.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from unlearning_jax import finetune, models, stable_diffusion
from unlearning_jax.concepts import Concept, check_choice, check_concepts
from unlearning_jax.data import Batches
from unlearning_jax.edits import Edit
from unlearning_jax.erasures import (
  NO_HOOKS,
  Hooks,
  check_batch,
  check_images,
  edit_of,
)
from unlearning_jax.erasures.fmn import words
from unlearning_jax.schedules import add_noise
from unlearning_jax.settings import check_numbers
from unlearning_jax.stable_diffusion import Params, StableDiffusion

CHANGES = ("unet/*",)
NEEDS = "images"
PRESETS = ("fixed", "reference")
TRAINED = ("full", "cross")
ENDS = {"fixed": "first", "reference": "all"}


@dataclasses.dataclass(frozen=True)
class Hparams:
  """FMN's hyperparameters.

  Attributes:
    preset: "fixed" or "reference".
    train: "full" for the whole UNet, "cross" for its cross-attention.
    ends: whether the end of text loses attention too.
    images: False noises zeros, as the release can, and draws nothing.
    words: new words that are learnt for each concept; 0 takes its name.
    words_steps: training steps of the words.
    words_rate: AdamW's learning rate of the words.
    template: the sentence that holds a concept, at "{}".
    num_images: the number of images, over all concepts.
    num_steps: training steps.
    learning_rate: AdamW's; it decays all weights by 0.01, and gradients are
      clipped to a norm of 1.
    batch_size: images in one step.
    num_inference_steps: DDIM steps that draw an image.
    guidance_scale: guidance scale of the images.
  """

  preset: str = "fixed"
  train: str = "full"
  ends: bool = True
  images: bool = True
  words: int = 4
  words_steps: int = 500
  words_rate: float = 1e-3
  template: str = "a photo of {}"
  num_images: int = 20
  num_steps: int = 35
  learning_rate: float = 2e-6
  batch_size: int = 1
  num_inference_steps: int = 50
  guidance_scale: float = 7.5

  def __post_init__(self):
    check_choice("preset", self.preset, PRESETS)
    check_choice("train", self.train, TRAINED)
    if "{}" not in self.template:
      raise ValueError(
        f"template={self.template!r}: has no place for a concept; give "
        "'a photo of {}'"
      )
    if self.words < 0:
      raise ValueError(f"words={self.words}; allowed: from 0, for the name")
    if self.words and not self.images:
      raise ValueError(
        f"words={self.words} and images=False: words are learnt from images; "
        "give words=0"
      )
    check_batch(self.batch_size, self.num_images)
    check_numbers(
      self, positive=("learning_rate", "words_rate"),
      counts=("words_steps", "num_images", "num_steps", "num_inference_steps"),
      finite=("guidance_scale",),
    )  # fmt: skip


def positions(
  ids: Int[np.ndarray, "n l"],
  words: Sequence[Sequence[int]],
  end: int,
  ends: str,
) -> Bool[np.ndarray, "n l"]:
  """P: where each row holds its words, and its end of text.

  Args:
    ids: token ids of the prompts.
    words: token ids of each prompt's concept.
    end: the token id of the end of text.
    ends: "none", "first", or "all" for every token of that id.

  Raises:
    ValueError: a row does not hold its words.
  """
  found = np.zeros(ids.shape, bool)
  for row, (prompt, wanted) in enumerate(zip(ids, words, strict=True)):
    size = len(wanted)
    for i in range(ids.shape[1] - size + 1):
      if size and [*prompt[i : i + size]] == [*wanted]:
        found[row, i : i + size] = True
    if not found[row].any():
      raise ValueError(
        f"fmn: tokens {[*wanted]} of a concept are not in its prompt "
        f"{[*prompt[:12]]}...; give a template in which '{{}}' is a word by "
        "itself, as 'a photo of {}'"
      )
    at = np.flatnonzero(prompt == end)
    found[row, at[: {"none": 0, "first": 1, "all": None}[ends]]] = True
  return found


def attention_norm(
  sd: StableDiffusion,
  params: Params,
  noisy: Float[Array, "b h w c"],
  t: Int[Array, " b"],
  context: Float[Array, "b l d"],
  marked: Bool[Array, "b l"],
) -> Float[Array, ""]:
  """The objective above: one norm over all layers and rows.

  Args:
    params: of the UNet that is trained.
    noisy: x_t.
    context: text states of c.
    marked: P.
  """
  _, weights = models.apply_with_attention(
    sd.unet, params["unet"], noisy, t, context
  )
  squares = [
    jnp.einsum("bhql,bl->", jnp.square(layer), marked.astype(layer.dtype))
    for layer in weights.values()
  ]
  return jnp.sqrt(jnp.stack(squares).sum())


def _loss(
  sd: StableDiffusion,
  join: Callable[[Any, Any], Params],
  images: bool,
  trained: Mapping[str, Array],
  frozen: Mapping[str, Any],
  batch: Mapping[str, Array],
  key: PRNGKeyArray,
) -> tuple[Float[Array, ""], finetune.Metrics]:
  keys = jax.random.split(key)
  latents = batch["latents"] if images else jnp.zeros_like(batch["latents"])
  noise = jax.random.normal(keys[0], latents.shape)
  steps = sd.schedule.num_train_timesteps
  t = jax.random.randint(keys[1], (len(latents),), 0, steps)
  noisy = add_noise(sd.schedule, latents, noise, t)
  params = join(trained, frozen["params"])
  context, marked = (frozen[k][batch["pair"]] for k in ("context", "marked"))
  return attention_norm(sd, params, noisy, t, context, marked), {}


@functools.lru_cache(maxsize=8)
def _training(
  sd: StableDiffusion, join: Callable[[Any, Any], Params], h: Hparams
) -> tuple[finetune.Loss, optax.GradientTransformation]:
  """Loss and optimizer; cached, so that a second call compiles nothing.

  A jitted step is keyed by these objects' identity.
  """
  tx = finetune.optimizer(
    h.learning_rate, h.num_steps, schedule="constant", warmup=0,
    decay_all=True, b2=0.999,
  )  # fmt: skip
  return functools.partial(_loss, sd, join, h.images), tx


def _asked(
  sd: StableDiffusion, concepts: Sequence[Concept], h: Hparams
) -> tuple[Int[np.ndarray, "n l"], list[list[int]]]:
  """Token ids of each concept's prompt, and of the concept alone."""
  phrases = [concept.erase for concept in concepts]
  ids = stable_diffusion.tokenize(sd, [h.template.format(p) for p in phrases])
  rows = sd.tokenizer(phrases, truncation=False)["input_ids"]
  return ids, [row[1:-1] for row in rows]


def _drawn(
  sd: StableDiffusion,
  params: Params,
  context: Float[Array, "n l d"],
  key: PRNGKeyArray,
  h: Hparams,
  collect: Callable[..., list[np.ndarray]],
) -> dict[str, np.ndarray]:
  """Images of the prompts, or zeros in their place."""
  if not h.images:
    pair = np.arange(h.num_images, dtype=np.int32) % len(context)
    shape = (h.num_images, *sd.latent_shape)
    return {"latents": np.zeros(shape, np.float32), "pair": pair}
  empty = stable_diffusion.encode_prompts(sd, params, [""])
  return finetune.draw_latents(
    sd, params, context, empty, h.num_images, key, collect, "forget",
    sampler="ddim", num_inference_steps=h.num_inference_steps,
    guidance_scale=h.guidance_scale,
  )  # fmt: skip


def erase(
  sd: StableDiffusion,
  params: Params,
  concepts: Sequence[Concept],
  key: PRNGKeyArray,
  h: Hparams,
  hooks: Hooks = NO_HOOKS,
) -> Edit:
  """Erases `concepts` by FMN.

  Arguments as `Erasure`. FMN ignores anchors and what concepts preserve; it
  uses `hooks.collect` and `hooks.trainer`.

  Raises:
    ValueError: an unusable concept, more concepts than images, or a template
      that joins a concept to a word.
    FloatingPointError: the training diverges.
  """
  check_concepts(concepts)
  check_images(concepts, h.num_images)
  (ids, names), keys = _asked(sd, concepts, h), jax.random.split(key, 3)
  end, ends = sd.tokenizer.eos_token_id, ENDS[h.preset] if h.ends else "none"
  marked = positions(ids, names, end, ends)
  context = stable_diffusion.encode_text(sd, params, ids)
  drawn = _drawn(sd, params, context, keys[0], h, hooks.collect)
  if h.words:
    ids, first = words.slotted(sd, h.template, names, h.words)
    found = words.learn(
      sd, params, names, (ids, first), drawn, keys[2], hooks.collect,
      num_steps=h.words_steps, learning_rate=h.words_rate, count=h.words,
    )  # fmt: skip
    context = words.contexts(sd, params["text_encoder"], found, ids, first)
    slots = [row[first : first + h.words] for row in ids]
    marked = positions(ids, slots, end, ends)
  part = finetune.partition({"unet": params["unet"]}, h.train)
  loss, tx = _training(sd, part.join, h)
  trained = hooks.trainer(
    loss, tx, part.trained,
    {"params": part.frozen, "context": context, "marked": marked},
    Batches(drawn, h.batch_size, int(jax.random.bits(keys[1]) >> 1)), keys[1],
    batch_size=h.batch_size, num_steps=h.num_steps,
  )  # fmt: skip
  return edit_of(params, part, trained, "fmn", concepts)
