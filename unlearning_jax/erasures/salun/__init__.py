"""SalUn: Saliency Unlearning (Fan et al., ICLR 2024), for Stable Diffusion.

The concept's prompt c learns to draw what the anchor's prompt a draws, on
images x of the concept, while images y of other prompts r are held:

  min  | f(x_t, t, c) - sg f(x_t, t, a) |^2 + alpha | f(y_t, t, r) - n |^2

x_t and y_t are noised images, n is the noise, and sg stops the gradient. f
provides its own target. Only salient weights move (`saliency` finds them). The
release multiplies gradients by the mask. With decay or momentum that does not
hold a weight, so here the mask chooses between a trained weight and the base's.

All images are drawn by the base, as the release's for nudity are. They stay
latents. The release encodes image files, twice a step, so that its two x differ
a little.

Two versions exist, each a preset:

  fixed      every step has another batch.
  reference  the release until February 2026. Its loop makes a new loader at
             every step, and the loader of the images to forget is not shuffled.
             So the first batch is the only one ever seen. For unsafe concepts
             the same holds for the images that remain.

The ablations are `saliency="random"` and `"none"`, and `loss="ascent"`, which
turns c's own loss around: - | f(x_t, t, c) - n |^2.

Reference: https://arxiv.org/abs/2310.12508, and its release
OPTML-Group/Unlearn-Saliency.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from unlearning_jax import finetune, stable_diffusion
from unlearning_jax.concepts import Concept, check_choice, check_concepts
from unlearning_jax.edits import Edit
from unlearning_jax.erasures import (
  NO_HOOKS,
  Hooks,
  check_predicts_noise,
  edit_of,
)
from unlearning_jax.erasures.salun import saliency, sets
from unlearning_jax.projections import leaves_of
from unlearning_jax.schedules import add_noise
from unlearning_jax.settings import check_numbers
from unlearning_jax.stable_diffusion import Params, StableDiffusion

CHANGES = ("unet/*",)
NEEDS = "images"
PRESETS = ("fixed", "reference")
SALIENCY = ("gradient", "random", "none")
LOSSES = ("relabel", "ascent")
TRAINED = ("full", "cross")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hparams(sets.Drawing):
  """SalUn's hyperparameters, and those of `sets.Drawing`.

  Attributes:
    preset: "fixed" or "reference".
    saliency: "gradient" for salient weights, "random" for as many others,
      "none" to let all move.
    keep: share of the UNet's weights that are salient.
    mask_guidance: guidance scale of the loss that finds them.
    loss: "relabel" or "ascent".
    train: "full" for the whole UNet, "cross" for its cross-attention.
    remain_weight: alpha.
    num_steps: training steps.
    learning_rate: Adam's.
    weight_decay: decoupled decay of the weights that move.
  """

  preset: str = "fixed"
  saliency: str = "gradient"
  keep: float = 0.5
  mask_guidance: float = 7.5
  loss: str = "relabel"
  train: str = "full"
  remain_weight: float = 0.5
  num_steps: int = 500
  learning_rate: float = 1e-5
  weight_decay: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    check_choice("preset", self.preset, PRESETS)
    check_choice("saliency", self.saliency, SALIENCY)
    check_choice("loss", self.loss, LOSSES)
    check_choice("train", self.train, TRAINED)
    if not 0 < (keep := self.keep) < 1:
      raise ValueError(
        f"{keep=}; allowed: between 0 and 1, neither of them; saliency='none' "
        "lets every weight move"
      )
    check_numbers(
      self, counts=("num_steps",), positive=("learning_rate",),
      from_zero=("remain_weight", "weight_decay"), finite=("mask_guidance",),
    )  # fmt: skip


def relabeling_loss(
  sd: StableDiffusion,
  params: Params,
  latents: Float[Array, "b h w c"],
  noise: Float[Array, "b h w c"],
  t: Float[Array, " b"],
  contexts: tuple[Float[Array, "b l d"], Float[Array, "b l d"]],
) -> Float[Array, ""]:
  """| f(x_t, t, c) - sg f(x_t, t, a) |^2, a mean over rows and elements.

  Args:
    params: f.
    latents: x.
    noise: n.
    contexts: text states of c and of a.
  """
  noisy = add_noise(sd.schedule, latents, noise, t)
  concept, anchor = (
    stable_diffusion.predict_noise(sd, params, noisy, t, context)
    for context in contexts
  )
  return jnp.square(concept - jax.lax.stop_gradient(anchor)).mean()


def set_losses(
  sd: StableDiffusion,
  params: Params,
  contexts: Mapping[str, Float[Array, "n l d"]],
  batch: Mapping[str, Array],
  key: PRNGKeyArray,
  loss: str = "relabel",
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """The losses of a batch's images to forget and of those that remain.

  Args:
    params: f.
    contexts: see `sets.Sets`.
    batch: see `sets.Steps`.
    key: draws noise and timesteps of each set.
    loss: of the images to forget, "relabel" or "ascent".
  """
  steps = sd.schedule.num_train_timesteps
  rows: dict[str, tuple[Array, Array, Array]] = {}
  for name, its in zip(
    ("forget", "remain"), jax.random.split(key), strict=True
  ):
    keys, latents = jax.random.split(its), batch[name]
    t = jax.random.randint(keys[1], (len(latents),), 0, steps)
    rows[name] = (latents, jax.random.normal(keys[0], latents.shape), t)
  pair = batch["forget_pair"]
  concept, anchor = (contexts[name][pair] for name in ("concept", "anchor"))
  if loss == "relabel":
    forget = relabeling_loss(sd, params, *rows["forget"], (concept, anchor))
  else:
    forget = -finetune.denoising_loss(sd, params, *rows["forget"], concept)[0]
  context = contexts["remain"][batch["remain_pair"]]
  remain, _ = finetune.denoising_loss(sd, params, *rows["remain"], context)
  return forget, remain


def masked(trained: Mapping[str, Any], frozen: Mapping[str, Any]) -> Any:
  """Trained leaves where `frozen["mask"]` says so, `frozen["base"]` elsewhere.

  No gradient reaches an entry that is masked out, and no decay moves it.
  """
  if "mask" not in frozen:
    return trained
  return {
    path: jnp.where(frozen["mask"][path], leaf, frozen["base"][path])
    for path, leaf in trained.items()
  }


def _loss(
  sd: StableDiffusion,
  join: Callable[[Any, Any], Params],
  loss: str,
  remain_weight: float,
  trained: Mapping[str, Array],
  frozen: Mapping[str, Any],
  batch: Mapping[str, Array],
  key: PRNGKeyArray,
) -> tuple[Float[Array, ""], finetune.Metrics]:
  params = join(masked(trained, frozen), frozen["params"])
  forget, remain = set_losses(sd, params, frozen["contexts"], batch, key, loss)
  return forget + remain_weight * remain, {"forget": forget, "remain": remain}


# Cached, so that a second call compiles nothing, and no other mask does: a
# jitted step is keyed by the identity of its loss and its optimizer.
_bound = functools.lru_cache(maxsize=8)(functools.partial)
_optimizer = functools.lru_cache(maxsize=8)(finetune.optimizer)


def _training(
  sd: StableDiffusion, join: Callable[[Any, Any], Params], h: Hparams
) -> tuple[finetune.Loss, optax.GradientTransformation]:
  """Loss and optimizer."""
  tx = _optimizer(
    h.learning_rate, 1, schedule="constant", warmup=0,
    weight_decay=h.weight_decay, decay_all=True, clip_norm=None, b2=0.999,
  )  # fmt: skip
  return _bound(_loss, sd, join, h.loss, h.remain_weight), tx


def _salient(
  sd: StableDiffusion,
  unet: Mapping[str, Any],
  found: sets.Sets,
  key: PRNGKeyArray,
  h: Hparams,
  hooks: Hooks,
) -> dict[str, np.ndarray]:
  """The mask of every leaf of the UNet."""

  def make(_: int) -> np.ndarray:
    if h.saliency == "random":
      rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
      drawn = {p: rng.random(x.shape, np.float32) for p, x in unet.items()}
      return saliency.pack(saliency.mask(drawn, h.keep))
    drawn = saliency.scores(
      sd, unet, found, key, batch_size=h.batch_size, guidance=h.mask_guidance
    )
    return saliency.pack(saliency.mask(drawn, h.keep))

  (packed,) = hooks.collect("saliency", 1, make)
  return saliency.unpack(packed, unet)


def erase(
  sd: StableDiffusion,
  params: Params,
  concepts: Sequence[Concept],
  key: PRNGKeyArray,
  h: Hparams,
  hooks: Hooks = NO_HOOKS,
) -> Edit:
  """Erases `concepts` by SalUn.

  Arguments as `Erasure`. What concepts preserve is drawn and held; without it
  their anchors are. SalUn uses `hooks.collect` and `hooks.trainer`.

  Raises:
    ValueError: an unusable concept, or more concepts than images; a preserved
      phrase that names a concept; nothing remains; a mask that keeps
      everything; a model that does not predict the noise.
    FloatingPointError: the training diverges.
  """
  check_concepts(concepts)
  check_predicts_noise(sd, "SalUn")
  keys = jax.random.split(key, 3)
  found = sets.draw(sd, params, concepts, keys[0], h, hooks.collect, "salun")
  part = finetune.partition({"unet": params["unet"]}, h.train)
  frozen = {"params": part.frozen, "contexts": dict(found.contexts)}
  if h.saliency != "none":
    # The threshold is that of the whole UNet, whatever trains of it.
    whole = _salient(
      sd, leaves_of({"unet": params["unet"]}), found, keys[1], h, hooks
    )
    frozen["mask"] = {path: whole[path] for path in part.trained}
    frozen["base"] = part.trained
  loss, tx = _training(sd, part.join, h)
  reference = h.preset == "reference"
  steps = sets.Steps(
    found, h.batch_size, int(jax.random.bits(keys[2]) >> 1), reference,
    shuffles=all(concept.task != "unsafe" for concept in concepts),
  )  # fmt: skip
  trained = hooks.trainer(
    loss, tx, part.trained, frozen, steps, keys[2],
    batch_size=h.batch_size, num_steps=h.num_steps,
  )  # fmt: skip
  if "mask" in frozen:
    trained = {
      path: np.where(frozen["mask"][path], leaf, part.trained[path])
      for path, leaf in trained.items()
    }
  return edit_of(params, part, trained, "salun", concepts)
