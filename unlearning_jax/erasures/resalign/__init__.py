"""ResAlign: an erasure that innocent tuning shall not undo.

Adapters theta of the UNet's attention are trained. Each step tunes them on
images of other things, in several ways at once (`lanes`), and asks that the
tuned weights w be bad at the concept too:

  min  (1 - beta) L(theta) + beta L(w) + alpha | f_theta - f_0 |^2

L is minus the denoising loss on images of the concept, f_theta the UNet's
prediction on images of what remains, and f_0 the base's. The loss falls without
bound, so that the number of steps ends it.

How L(w) moves with theta is `hypergrad`:

  first_order  as if w moved with theta step by step
  neumann      the paper's, from the curvature of the tuning's loss at w
  unrolled     exactly, back through all of the tuning's steps

Two versions exist, each a preset:

  fixed       Adapters begin at zero, so that the model begins as the base. All
              lanes run in each step. gamma is a lane's steps times its learning
              rate. L(theta) and L(w) see the same noise. A gradient that is too
              long is shortened.
  paper_code  the release. Both factors of an adapter begin at random. A step
              runs `drawn` lanes. gamma is 1, the curvature is that of one
              image, and a gradient that is too long loses L(w)
              (`hypergrad.released`). Adam corrects its moments twice.

Not here are two of the release's lanes: the one with DreamBooth's second loss,
and the one that tunes the whole UNet, whose gradient the release takes in
another basis than theta's. Its other lanes learn the set that its loaders give
them: three share a name, and so the last one's images. The release's Adam keeps
its moments from one step's tuning to the next, and each lane of a step has
images of its own to forget and to hold; here a tuning begins anew, and a step's
lanes share these images. All images are drawn by the base.

Reference: Li et al., NeurIPS 2025, https://arxiv.org/abs/2507.16302, and its
release AntigoneRandy/ResAlign.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from unlearning_jax import finetune
from unlearning_jax.concepts import Concept, check_choice, check_concepts
from unlearning_jax.edits import Edit
from unlearning_jax.erasures import (
  NO_HOOKS,
  Hooks,
  check_predicts_noise,
  edit_of,
)
from unlearning_jax.erasures.resalign import hypergrad, images, lanes
from unlearning_jax.erasures.resalign.losses import Losses
from unlearning_jax.erasures.salun import sets
from unlearning_jax.lora import Adapters
from unlearning_jax.settings import check_numbers
from unlearning_jax.stable_diffusion import Params, StableDiffusion

CHANGES = ("unet/*/attn1/*", "unet/*/attn2/*")
NEEDS = "images"
PRESETS = ("fixed", "paper_code")
HYPERGRADS = ("first_order", "neumann", "unrolled")
# The release's, but for the two that are not here.
LANES = (
  "sgd/1e-4/20/2", "sgd/1e-4/30/1", "adam/1e-4/5/1", "sgd/1e-4/5/2",
  "adam/1e-4/30/0", "sgd/1e-5/30/1", "sgd/1e-5/5/2", "sgd/1e-5/10/0",
  "sgd/1e-4/10/1", "adam/1e-5/10/2", "sgd/1e-5/30/2", "sgd/1e-6/20/2",
  "adam/1e-5/10/1",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hparams(sets.Drawing):
  """ResAlign's hyperparameters, and those of `sets.Drawing`.

  Attributes:
    preset: "fixed" or "paper_code".
    hypergrad: "first_order", "neumann" or "unrolled"; only "fixed" heeds it.
    lanes: the tunings, each "optimizer/learning rate/steps/set". The phrases
      that remain are dealt out to the sets in turn.
    drawn: lanes of a step; only "paper_code" heeds it.
    tuning_batch: images in a step of a tuning.
    curvature_batch: images that the curvature is of; only "neumann" heeds it.
    gamma: of every lane; 0 takes a lane's steps times its learning rate, which
      is near the truth for "sgd" alone. Only "neumann" heeds it.
    terms: of the series that "neumann" sums. A lane whose terms grow takes the
      first one alone; the metric `dropped` is the share of such lanes.
    lanes_at_once: lanes that are computed together, to bound the memory; 0 for
      all. It changes no result but for rounding.
    resilience: beta.
    remain_weight: alpha at the beginning.
    last_remain_weight: alpha at the end; it nears it in the second half.
    rank: of the adapters.
    num_steps: training steps.
    learning_rate: AdamW's.
    cap: the longest gradient; in "paper_code" see `hypergrad.released`.
    batch_size: images of what remains in a step.
    concept_batch: images of the concept in a step, at most `batch_size`.
  """

  preset: str = "fixed"
  hypergrad: str = "neumann"
  lanes: tuple[str, ...] = LANES
  drawn: int = 3
  tuning_batch: int = 1
  curvature_batch: int = 4
  gamma: float = 0.0
  terms: int = 5
  lanes_at_once: int = 0
  resilience: float = 0.8
  remain_weight: float = 1.6
  last_remain_weight: float = 2.0
  rank: int = 4
  num_steps: int = 160
  learning_rate: float = 2e-4
  cap: float = 0.2
  batch_size: int = 4
  concept_batch: int = 1

  def __post_init__(self):
    super().__post_init__()
    check_choice("preset", self.preset, PRESETS)
    check_choice("hypergrad", self.hypergrad, HYPERGRADS)
    check_numbers(
      self,
      counts=(
        "drawn", "tuning_batch", "curvature_batch", "terms", "rank",
        "num_steps", "concept_batch",
      ),
      positive=("learning_rate", "cap"),
      from_zero=("remain_weight", "last_remain_weight", "gamma"),
    )  # fmt: skip
    if not 0 <= self.resilience <= 1:
      raise ValueError(f"resilience={self.resilience}; allowed: 0 to 1")
    lanes.parse(self.lanes)
    bounds = {"concept_batch": self.batch_size}
    if self.preset == "paper_code":
      bounds["drawn"] = len(self.lanes)
    for name, most in bounds.items():
      if (given := getattr(self, name)) > most:
        raise ValueError(f"{name}={given}; allowed: 1 to {most}")


def remain_weight(h: Hparams, step: Int[Array, ""] | int) -> Float[Array, ""]:
  """The weight alpha at a step, from 0: a sigmoid in the second half."""
  half = h.num_steps / 2
  progress = (step + 1 - half) / half
  share = jnp.where(progress < 0, 0, jax.nn.sigmoid(10 * (progress - 0.5)))
  return h.remain_weight + share * (h.last_remain_weight - h.remain_weight)


def tuned(
  losses: Losses,
  h: Hparams,
  theta: Adapters,
  lane: lanes.Lanes,
  key: PRNGKeyArray,
) -> Adapters:
  """One lane's w, differentiable in theta.

  Args:
    theta: the adapters.
    lane: its numbers, without an axis.
    key: draws the images that it is tuned on.
  """

  def loss(adapters: Adapters, key: PRNGKeyArray) -> Array:
    return losses.tuning(adapters, key, lane.of, h.tuning_batch)

  longest = int(max(lanes.parse(h.lanes).steps))
  return lanes.tune(loss, theta, lane, key, longest, h.preset == "paper_code")


def through(
  losses: Losses,
  h: Hparams,
  lane: lanes.Lanes,
  w: Adapters,
  g: Adapters,
  direct: Adapters,
  key: PRNGKeyArray,
) -> tuple[Adapters, finetune.Metrics]:
  """One lane's gradient in theta, `direct` included.

  Args:
    lane: its numbers, without an axis.
    w: where the lane ended.
    g: the gradient of beta L at w; for "unrolled" already taken back to theta.
    direct: the gradient at theta of what does not go through w.
    key: draws the images whose loss is curved.
  """

  def product(rows: int, key: PRNGKeyArray) -> Callable[[Adapters], Adapters]:
    return hypergrad.curvature(
      lambda u: losses.tuning(u, key, lane.of, rows), w
    )

  if h.preset == "paper_code":
    total, s, dropped = hypergrad.released(
      g, direct,
      lambda v, attempt: product(1, jax.random.fold_in(key, attempt))(v),
      terms=h.terms, cap=h.cap,
    )  # fmt: skip
    return total, {"s": s, "dropped": dropped}
  found = {}
  if h.hypergrad == "neumann":
    gamma = h.gamma or lane.steps * lane.learning_rate
    total, grown = hypergrad.neumann(
      g, product(h.curvature_batch, key), gamma, h.terms
    )
    # A series that grows has no sum; its first term is `first_order`'s.
    g = jax.tree.map(lambda a, b: jnp.where(grown < 1, a, b), total, g)
    found = {"growth": grown, "dropped": (grown >= 1).astype(jnp.float32)}
  return optax.tree.add(g, direct), found


def _loss(
  sd: StableDiffusion,
  join: Callable[[Any, Any], Params],
  h: Hparams,
  trained: Adapters,
  frozen: Mapping[str, Any],
  batch: Mapping[str, Array],
  key: PRNGKeyArray,
) -> tuple[Float[Array, ""], finetune.Metrics]:
  theta, losses = (
    jax.lax.stop_gradient(trained),
    Losses(sd, join, frozen, batch),
  )
  keys, beta = jax.random.split(key, 7), h.resilience
  every, noise = jax.tree.map(jnp.asarray, lanes.parse(h.lanes)), keys[0]
  if h.preset == "paper_code":
    picked = jax.random.choice(keys[2], len(h.lanes), (h.drawn,), replace=False)
    every, noise = jax.tree.map(lambda leaf: leaf[picked], every), keys[4]
  count = len(every.steps)
  own, bent = (jax.random.split(k, count) for k in (keys[3], keys[5]))

  def each(function: Callable[..., Any], *mapped: Any) -> Any:
    return jax.lax.map(
      lambda one: function(*one),
      mapped,
      batch_size=h.lanes_at_once or count + 1,
    )

  def tune(thetas: Adapters) -> Adapters:
    return each(
      lambda its, lane, key: tuned(losses, h, its, lane, key),
      thetas, every, own,
    )  # fmt: skip

  thetas = jax.tree.map(
    lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), theta
  )
  # Back through all lanes at once: the network is stored once for all of them.
  unrolled = h.preset == "fixed" and h.hypergrad == "unrolled"
  w, back = jax.vjp(tune, thetas) if unrolled else (tune(thetas), None)
  # theta and every w in one, so that the gradient is compiled once.
  points = jax.tree.map(
    lambda one, more: jnp.concatenate([one[None], more]), theta, w
  )
  values, slopes = each(
    jax.value_and_grad(
      lambda its, key: losses.concept(its, (keys[6], key), h.concept_batch)
    ),
    points, jnp.stack([keys[0], *[noise] * count]),
  )  # fmt: skip
  remain, held = jax.value_and_grad(losses.remain)(theta, keys[1])
  alpha = remain_weight(h, batch["step"][0])
  direct = jax.tree.map(
    lambda slope, leaf: (1 - beta) * slope[0] + alpha * leaf, slopes, held
  )
  g = jax.tree.map(lambda slope: beta * slope[1:], slopes)
  if back:
    (g,) = back(g)
  gradients, found = each(
    lambda lane, w, g, key: through(losses, h, lane, w, g, direct, key),
    every, w, g, bent,
  )  # fmt: skip
  # A lane that has diverged must not be left out of the mean in silence.
  whole = jnp.isfinite(values).all()
  gradient = jax.tree.map(
    lambda leaf: jnp.where(whole, leaf.mean(0), jnp.nan), gradients
  )
  metrics = {name: one.mean() for name, one in found.items()}
  metrics |= {
    "concept": values[0], "tuned": values[1:].mean(), "remain": remain,
    "alpha": alpha,
  }  # fmt: skip
  value = (1 - beta) * values[0] + beta * metrics["tuned"] + alpha * remain
  return hypergrad.with_gradient(value, gradient, trained), metrics


# The release's factor on the mean gradient; AdamW hardly sees it.
_META_RATE = 0.3


@functools.lru_cache(maxsize=8)
def _training(
  sd: StableDiffusion, join: Callable[[Any, Any], Params], h: Hparams
) -> tuple[finetune.Loss, optax.GradientTransformation]:
  """Loss and optimizer; cached, so that a second call compiles nothing.

  A jitted step is keyed by these objects' identity.
  """
  fixed = h.preset == "fixed"
  tx = finetune.optimizer(
    h.learning_rate, 1, schedule="constant", warmup=0, decay_all=True,
    clip_norm=h.cap if fixed else None, b2=0.999,
  )  # fmt: skip
  if not fixed:
    tx = optax.chain(optax.scale(_META_RATE), tx)
  return functools.partial(_loss, sd, join, h), tx


def random_factors(adapters: Adapters, key: PRNGKeyArray) -> Adapters:
  """The release's beginning: down ~ N(0, .008^2), up ~ N(0, .002^2)."""
  leaves, kind = jax.tree.flatten(adapters)
  widths = jax.tree.leaves(
    {path: {"down": 0.008, "up": 0.002} for path in adapters}
  )
  drawn = [
    width * jax.random.normal(k, leaf.shape)
    for width, leaf, k in zip(
      widths, leaves, jax.random.split(key, len(leaves)), strict=True
    )
  ]
  return jax.tree.unflatten(kind, drawn)


def erase(
  sd: StableDiffusion,
  params: Params,
  concepts: Sequence[Concept],
  key: PRNGKeyArray,
  h: Hparams,
  hooks: Hooks = NO_HOOKS,
) -> Edit:
  """Erases `concepts` by ResAlign.

  Arguments as `Erasure`. What concepts preserve is drawn, held and tuned on;
  without it their anchors are. ResAlign uses `hooks.collect` and
  `hooks.trainer`.

  Raises:
    ValueError: an unusable concept, or more concepts than images; a preserved
      phrase that names a concept; nothing remains; more sets than phrases; a
      rank that does not fit; a model that does not predict the noise.
    FloatingPointError: the training, or one of its tunings, diverges.
  """
  check_concepts(concepts)
  check_predicts_noise(sd, "ResAlign")
  keys = jax.random.split(key, 4)
  part = finetune.partition(
    {"unet": params["unet"]}, "lora", keys[0], rank=h.rank
  )
  begin = part.trained
  if h.preset == "paper_code":
    begin = random_factors(begin, keys[0])
  kept = sets.remaining("ResAlign", concepts)
  count = images.check_sets(h.lanes, min(len(kept), h.num_images))
  found = sets.draw(sd, params, concepts, keys[1], h, hooks.collect, "ResAlign")
  loss, tx = _training(sd, part.join, h)
  batches = sets.Steps(found, h.batch_size, int(jax.random.bits(keys[2]) >> 1))
  trained = hooks.trainer(
    loss, tx, begin,
    {
      "params": part.frozen, "contexts": dict(found.contexts),
      "tuning": images.tuning(found, count),
    },
    images.Counted(batches), keys[3],
    batch_size=h.batch_size, num_steps=h.num_steps,
  )  # fmt: skip
  return edit_of(params, part, trained, "resalign", concepts)
