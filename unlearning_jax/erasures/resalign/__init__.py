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

A lane tunes the adapters, or all weights of the UNet by AdamW. The latter is
always of first order, see `whole`. A lane may have DreamBooth's second loss, on
images of a prior set.

Two versions exist, each a preset:

  fixed       Adapters begin at zero, so that the model begins as the base. All
              lanes run in each step. gamma is a lane's steps times its learning
              rate. L(theta) and L(w) see the same noise. A gradient that is too
              long is shortened.
  paper_code  the release. Both factors of an adapter begin at random. A step
              runs `drawn` lanes. gamma is 1, the curvature is that of one
              image, and a gradient that is too long loses L(w)
              (`hypergrad.released`). Adam corrects its moments twice.

The release's lane of all weights is mended in both. There it begins at the
adapters that were written last, which are another lane's w. An SVD makes
adapters of where it ends. The gradient in these, which have another basis, is
added to theta's. Here the lane begins at theta, and theta's gradient is taken;
`paper_code` has its cap here too, without curvature.

Lanes learn the set that the release's loaders give them: three share a name,
and so the last one's images. Not here is its one prompt for all images of the
lane with DreamBooth's loss, "a photo of *s person": they keep their own. The
release's Adam keeps its moments from one step's tuning to the next, and each
lane of a step has images of its own to forget and to hold; here a tuning begins
anew, and a step's lanes share these images. All images are drawn by the base.

Reference: Li et al., NeurIPS 2025, https://arxiv.org/abs/2507.16302, and its
release AntigoneRandy/ResAlign.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from jaxtyping import PRNGKeyArray

from unlearning_jax import finetune
from unlearning_jax.concepts import Concept, check_concepts
from unlearning_jax.edits import Edit
from unlearning_jax.erasures import (
  NO_HOOKS,
  Hooks,
  check_predicts_noise,
  edit_of,
)
from unlearning_jax.erasures.resalign import images, step
from unlearning_jax.erasures.resalign.options import Hparams as Hparams
from unlearning_jax.erasures.salun import sets
from unlearning_jax.lora import Adapters
from unlearning_jax.stable_diffusion import Params, StableDiffusion

CHANGES = ("unet/*/attn1/*", "unet/*/attn2/*")
NEEDS = "images"


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
  return functools.partial(step.loss, sd, join, h), tx


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
