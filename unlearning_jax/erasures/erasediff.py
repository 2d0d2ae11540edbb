"""EraseDiff: Erasing Undesirable Influence in Diffusion Models.

The concept's prompt c learns to draw what the anchor's prompt a draws, on
images x of the concept; images y of other prompts r are held:

  min  | f(y_t, t, r) - n |^2 + lambda q ,
  q = | f(x_t, t, c) - sg f(x_t, t, a) |^2 - what inner steps make of it

The paper states a problem of two levels. Inner steps on q's first term start
from the same weights and are undone. All that is kept of them is their loss, a
number without a gradient. lambda is a constant, or

  lambda = max(0, eta - cos(gradient of the first loss, gradient of q)) .

Two versions exist, each a preset:

  fixed      makes no inner steps, because no gradient depends on them.
  reference  the release. Adam keeps the moments of inner steps that are undone.
             Of the `inner_passes` rounds in an epoch each goes back to where
             the epoch began, so that only the last round's steps count. A new
             loader at every step shows the first batch to forget alone. (It
             cannot run the second lambda: nothing defines its eta.)

All images are drawn by the base, as in SalUn.

Reference: Wu et al., CVPR 2025, https://arxiv.org/abs/2401.05779, and its
release JingWu321/EraseDiff.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from unlearning_jax import finetune
from unlearning_jax.concepts import Concept, check_choice, check_concepts
from unlearning_jax.edits import Edit
from unlearning_jax.erasures import (
  NO_HOOKS,
  Hooks,
  check_predicts_noise,
  edit_of,
  esd,
)
from unlearning_jax.erasures.salun import set_losses, sets
from unlearning_jax.settings import check_numbers
from unlearning_jax.stable_diffusion import Params, StableDiffusion

Tree = TypeVar("Tree")

CHANGES = ("unet/*",)
NEEDS = "images"
PRESETS = ("fixed", "reference")
PENALTIES = ("constant", "adaptive")
TRAINED = ("u", "x", "full")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hparams(sets.Drawing):
  """EraseDiff's hyperparameters, and those of `sets.Drawing`.

  Attributes:
    preset: "fixed" or "reference".
    train: as ESD's: "x" for cross-attention, "u" for everything else, "full"
      for the whole UNet.
    penalty: "constant" or "adaptive", how lambda is found.
    forget_weight: lambda where it is constant.
    eta: of an adaptive lambda.
    epochs: passes over the images.
    inner_passes: rounds of inner steps in an epoch; only "reference" makes
      them.
    learning_rate: Adam's.
  """

  preset: str = "fixed"
  train: str = "full"
  penalty: str = "constant"
  forget_weight: float = 1.0
  eta: float = 0.01
  epochs: int = 2
  inner_passes: int = 1
  batch_size: int = 16
  learning_rate: float = 1e-5

  def __post_init__(self):
    super().__post_init__()
    check_choice("preset", self.preset, PRESETS)
    check_choice("train", self.train, TRAINED)
    check_choice("penalty", self.penalty, PENALTIES)
    check_numbers(
      self, counts=("epochs", "inner_passes"), positive=("learning_rate",),
      from_zero=("forget_weight", "eta"),
    )  # fmt: skip

  @property
  def steps_per_pass(self) -> int:
    """Steps in one pass over the images to forget, as the release counts."""
    return -(-self.num_images // self.batch_size)

  @property
  def steps_per_epoch(self) -> int:
    """Steps of the optimizer in an epoch, those that are undone included."""
    rounds = 2 * self.inner_passes if self.preset == "reference" else 1
    return rounds * self.steps_per_pass


class Undoing(NamedTuple):
  """The state of `undoing`: steps done, weights to go back to, the inner's."""

  count: Array
  start: Any
  inner: Any


def undoing(
  tx: optax.GradientTransformation, steps: int, rounds: int
) -> optax.GradientTransformation:
  """`tx`, but half of its steps are undone; their moments stay.

  An epoch has `rounds` rounds of 2 `steps`. After the first half of a round
  the weights are again what they were when the epoch began.
  """

  def init(params: optax.Params) -> Undoing:
    # A copy, because `finetune.train` reuses the memory of its whole state.
    start = jax.tree.map(jnp.array, params)
    return Undoing(jnp.zeros((), jnp.int32), start, tx.init(params))

  def update(
    updates: optax.Updates, state: Any, params: optax.Params | None = None
  ):
    at = state.count % (2 * steps * rounds)
    start = jax.tree.map(
      lambda new, old: jnp.where(at == 0, new, old), params, state.start
    )
    updates, inner = tx.update(updates, state.inner, params)
    back = at % (2 * steps) == steps - 1
    updates = jax.tree.map(
      lambda update, new, old: jnp.where(back, old - new, update),
      updates, params, start,
    )  # fmt: skip
    return updates, Undoing(state.count + 1, start, inner)

  return optax.GradientTransformation(init, update)


def adaptive(first: Tree, second: Tree, eta: float) -> Float[Array, ""]:
  """max(0, eta - the cosine of two gradients)."""
  inner = sum(
    jnp.vdot(a, b)
    for a, b in zip(
      jax.tree.leaves(first), jax.tree.leaves(second), strict=True
    )
  )
  norms = optax.global_norm(first) * optax.global_norm(second)
  return jnp.maximum(0.0, eta - inner / (norms + 1e-8))


def _loss(
  sd: StableDiffusion,
  join: Callable[[Any, Any], Params],
  h: Hparams,
  trained: Mapping[str, Array],
  frozen: Mapping[str, Any],
  batch: Mapping[str, Array],
  key: PRNGKeyArray,
) -> tuple[Float[Array, ""], finetune.Metrics]:
  def losses(leaves: Mapping[str, Array]) -> tuple[Array, Array]:
    params = join(leaves, frozen["params"])
    return set_losses(sd, params, frozen["contexts"], batch, key)

  forget, remain = losses(trained)
  weight = jnp.float32(h.forget_weight)
  if h.penalty == "adaptive":
    held = jax.grad(lambda leaves: losses(leaves)[1])(trained)
    gone = jax.grad(lambda leaves: losses(leaves)[0])(trained)
    weight = jax.lax.stop_gradient(adaptive(held, gone, h.eta))
  found = {"forget": forget, "remain": remain, "lambda": weight}
  if "outer" not in batch:
    return remain + weight * forget, found
  outer = batch["outer"][0]
  return jnp.where(outer, remain + weight * forget, forget), found


@dataclasses.dataclass(frozen=True)
class _Rounds:
  """Batches of the release: each says whether it is of an outer step."""

  steps: sets.Steps
  steps_per_pass: int

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    batch = self.steps[step]
    outer = step // self.steps_per_pass % 2 == 1
    return batch | {"outer": np.full(len(batch["forget"]), outer)}


@functools.lru_cache(maxsize=8)
def _training(
  sd: StableDiffusion, join: Callable[[Any, Any], Params], h: Hparams
) -> tuple[finetune.Loss, optax.GradientTransformation]:
  """Loss and optimizer; cached, so that a second call compiles nothing.

  A jitted step is keyed by these objects' identity.
  """
  tx = finetune.optimizer(
    h.learning_rate, 1, schedule="constant", warmup=0, weight_decay=0,
    clip_norm=None, b2=0.999,
  )  # fmt: skip
  if h.preset == "reference":
    tx = undoing(tx, h.steps_per_pass, h.inner_passes)
  return functools.partial(_loss, sd, join, h), tx


def erase(
  sd: StableDiffusion,
  params: Params,
  concepts: Sequence[Concept],
  key: PRNGKeyArray,
  h: Hparams,
  hooks: Hooks = NO_HOOKS,
) -> Edit:
  """Erases `concepts` by EraseDiff.

  Arguments as `Erasure`. What concepts preserve is drawn and held; without it
  their anchors are. EraseDiff uses `hooks.collect` and `hooks.trainer`.

  Raises:
    ValueError: an unusable concept, or more concepts than images; a preserved
      phrase that names a concept; nothing remains; a model that does not
      predict the noise.
    FloatingPointError: the training diverges.
  """
  check_concepts(concepts)
  check_predicts_noise(sd, "EraseDiff")
  keys = jax.random.split(key)
  found = sets.draw(
    sd, params, concepts, keys[0], h, hooks.collect, "erasediff"
  )
  part = finetune.subset(
    {"unet": params["unet"]}, esd.trains(h.train, esd.PRESETS["fixed"]), h.train
  )
  loss, tx = _training(sd, part.join, h)
  reference = h.preset == "reference"
  batches: Any = sets.Steps(
    found, h.batch_size, int(jax.random.bits(keys[1]) >> 1), reference,
    shuffles=all(concept.task != "unsafe" for concept in concepts),
  )  # fmt: skip
  if reference:
    batches = _Rounds(batches, h.steps_per_pass)
  trained = hooks.trainer(
    loss, tx, part.trained,
    {"params": part.frozen, "contexts": dict(found.contexts)}, batches, keys[1],
    batch_size=h.batch_size, num_steps=h.epochs * h.steps_per_epoch,
  )  # fmt: skip
  return edit_of(params, part, trained, "erasediff", concepts)
