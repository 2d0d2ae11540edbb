"""Meta-Unlearning: an erasure that tuning on the concept shall not undo.

It wraps another erasure. Each step tunes a copy of the weights theta on images
of the concept, as an attacker would, which gives w. Then it asks that w be bad
at the concept, and at what is related to it:

  min  L_erase(theta) + g11 L_irr(theta) + g12 L_rel(theta)
       - g21 L_con(w) - g22 L_rel(w) - g23 L_irr(w)

L_erase is the wrapped method's own loss. The others are denoising losses: L_con
on images of the concept, L_rel on related ones that shall stay ("a woman" for
nudity), and L_irr on unrelated ones. Near theta the last three terms ask for a
small slope of L_con, so that relearning is slow. They ask for an angle of more
than 90 degrees between the slopes of L_con and L_rel too, so that relearning
the concept breaks what is related to it.

How w moves with theta is `hypergrad`: "first_order", as in the paper, takes the
gradients at w for those at theta. "unrolled" takes them back through all of the
tuning's steps, exactly.

A wrapped method that trains keeps its own optimizer, steps and draws. It gains
the terms above, and its gradient is clipped. The tuning changes the weights
that it trains. UCE, RECE and TIME have no loss: the training begins at their
edit, with the terms above alone, and changes the whole UNet.

Two versions exist, each a preset:

  fixed      A term is a mean, so that more images do not weigh more. The g's
             are those that the release's script means to give. L_rel and L_irr
             see the same noise at theta and at w.
  reference  A term counts as often as its images have batches. The g's are
             those that the script gives: it writes one flag three times. Every
             term sees noise of its own.

The release draws an epoch of its images for each term. Here a term draws one
batch, whose gradient is the same in the mean. Not here are the clipped
gradients and the decay of 1e-4 in the release's tuning, and its option of fixed
timesteps. The release tunes the whole UNet, whatever it trains. Its script for
UCE and RECE stops with an error.

Reference: Gao et al., ICCV 2025, https://arxiv.org/abs/2410.12777, and its
release sail-sg/Meta-Unlearning.
"""

import ast
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import flatten_util
from jaxtyping import Array, Float, PRNGKeyArray

from unlearning_jax import erasures, finetune, settings, stable_diffusion
from unlearning_jax.concepts import Concept, check_choice, check_concepts
from unlearning_jax.edits import Edit, apply_to_params
from unlearning_jax.erasures import NO_HOOKS, Hooks
from unlearning_jax.erasures.meta_unlearning import images, terms
from unlearning_jax.erasures.resalign import hypergrad, lanes
from unlearning_jax.erasures.resalign.losses import Losses
from unlearning_jax.erasures.salun import masked, sets
from unlearning_jax.finetune.drawn import spread
from unlearning_jax.finetune.partition import Leaves, join_leaves
from unlearning_jax.stable_diffusion import Params, StableDiffusion

CHANGES = ("unet/*",)
NEEDS = "images"
# Wrapped method -> hyperparameters that the paper gives it.
TRAINED: dict[str, dict[str, Any]] = {
  "esd": {"train": "full", "eta": 3.0, "num_steps": 1500},
  "concept_ablation": {}, "salun": {}, "erasediff": {},
}  # fmt: skip
CLOSED: dict[str, dict[str, Any]] = {"uce": {}, "rece": {}, "time": {}}
HYPERGRADS = ("first_order", "unrolled")
# g11, g12, g21, g22, g23.
WEIGHTS = (
  "hold_irrelevant", "hold_related",
  "slow_relearning", "break_related", "break_irrelevant",
)  # fmt: skip
PRESETS = {
  "fixed": (0.1, 0.01, 0.1, 0.1, 0.01),
  "reference": (0.1, 0.01, 0.01, 1.0, 1.0),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hparams(sets.Drawing):
  """Meta-Unlearning's hyperparameters, and those of `sets.Drawing`.

  Attributes:
    preset: "fixed" or "reference".
    wrapped: the method that it wraps, a name in `TRAINED` or `CLOSED`.
    wrapped_hparams: that method's hyperparameters, each as "train='x'", or as
      "esd.train='x'" to give it only where esd is wrapped. Those that are not
      given are the recipe's, the paper's, or else the method's defaults.
    wrapped_recipe: the same for a world's small models; read first.
    related: phrases whose images shall stay, and break when the concept is
      relearned; () for the concepts' anchors. What is irrelevant is what the
      concepts preserve, without these.
    lanes: the tunings, each "optimizer/learning rate/steps/set", as ResAlign
      has them. Set 0 is the concept, 1 what is related, 2 what is irrelevant.
    hypergrad: "first_order" or "unrolled".
    hold_irrelevant: g11; None, as in the others, for the preset's.
    hold_related: g12.
    slow_relearning: g21.
    break_related: g22.
    break_irrelevant: g23.
    clip_norm: the longest gradient of a step.
    num_steps: training steps after a closed form; a method that trains has its
      own.
    learning_rate: AdamW's after a closed form.
    num_images: the number of images of each set.
    batch_size: images of a term, and of a step of a tuning.
  """

  preset: str = "fixed"
  wrapped: str = "esd"
  wrapped_hparams: tuple[str, ...] = ()
  wrapped_recipe: tuple[str, ...] = ()
  related: tuple[str, ...] = ()
  lanes: tuple[str, ...] = ("adam/1e-5/3/0",)
  hypergrad: str = "first_order"
  hold_irrelevant: float | None = None
  hold_related: float | None = None
  slow_relearning: float | None = None
  break_related: float | None = None
  break_irrelevant: float | None = None
  clip_norm: float = 1.0
  num_steps: int = 100
  learning_rate: float = 1e-5
  num_images: int = 30
  batch_size: int = 10

  def __post_init__(self):
    super().__post_init__()
    check_choice("preset", self.preset, PRESETS)
    check_choice("wrapped", self.wrapped, TRAINED | CLOSED)
    check_choice("hypergrad", self.hypergrad, HYPERGRADS)
    given = [name for name in WEIGHTS if getattr(self, name) is not None]
    settings.check_numbers(
      self, counts=("num_steps",), positive=("clip_norm", "learning_rate"),
      from_zero=given,
    )  # fmt: skip
    if not any(self.weights[2:]):
      raise ValueError(
        "slow_relearning, break_related and break_irrelevant are 0: nothing of "
        f"the tuning counts; give one of them, or use method={self.wrapped}"
      )
    if (most := int(max(lanes.parse(self.lanes).of))) >= len(terms.SETS):
      raise ValueError(
        f"lanes={self.lanes}: there is no set {most}; allowed: 0 for the "
        "concept, 1 for what is related, 2 for what is irrelevant"
      )
    for key in ("related", "wrapped_hparams", "wrapped_recipe"):
      found = getattr(self, key)
      if isinstance(found, str) or not all(one.strip() for one in found):
        raise ValueError(f"{key}={found!r}; give a list of texts, none blank")
    # Checks the wrapped method's hyperparameters.
    _ = self.bound

  @property
  def weights(self) -> tuple[float, ...]:
    """g11, g12, g21, g22 and g23, as the gradient of one batch counts."""
    own = [getattr(self, name) for name in WEIGHTS]
    # How many batches the release adds up.
    times = 1.0
    if self.preset == "reference":
      times = -(-self.num_images // self.batch_size)
    return tuple(
      times * (published if given is None else given)
      for given, published in zip(own, PRESETS[self.preset], strict=True)
    )

  @functools.cached_property
  def bound(self) -> erasures.Erasure:
    """The wrapped method with its hyperparameters."""
    methods = TRAINED | CLOSED
    values = dict(methods[self.wrapped])
    for word in (*self.wrapped_recipe, *self.wrapped_hparams):
      name, equals, value = word.partition("=")
      method, _, name = name.strip().rpartition(".")
      if not equals:
        raise ValueError(
          f"wrapped_hparams: {word!r} is no name=value, as in \"train='x'\""
        )
      if method:
        check_choice("wrapped_hparams: the wrapped method", method, methods)
      if method in ("", self.wrapped):
        values[name] = _value(value)
    kind = erasures.module(self.wrapped).Hparams
    try:
      made = settings.build(kind, values, "wrapped_hparams")
    except ValueError as error:
      raise ValueError(f"wrapped_hparams of {self.wrapped}: {error}") from error
    for name in ("allow_conflict", "truncate"):
      if getattr(made, name, False):
        raise ValueError(
          f"wrapped_hparams: {name}=True is not taken over from a wrapped "
          f"method; leave it out, or use method={self.wrapped}"
        )
    return erasures.Erasure(self.wrapped, made)


def _value(text: str) -> Any:
  """A number, flag, list or text; a text needs no quotes."""
  try:
    return ast.literal_eval(text)
  except (SyntaxError, ValueError):
    return text


# Folded into a key, this draws apart from what a wrapped method draws.
_APART = 10**6


def _loss(
  sd: StableDiffusion,
  erasing: finetune.Loss,
  h: Hparams,
  trained: Leaves,
  frozen: Mapping[str, Any],
  batch: Mapping[str, Array],
  key: PRNGKeyArray,
) -> tuple[Float[Array, ""], finetune.Metrics]:
  """The wrapped method's loss and the terms; its gradient is that of both."""
  own = frozen["erasure"]
  losses = Losses(
    sd, join_leaves, {"params": own["params"], **frozen["meta"]}, {}
  )
  erased, metrics = erasing(trained, own, batch, key)
  # What SalUn masks stays the base's, here as in its edit.
  theta, unravel = flatten_util.ravel_pytree(masked(trained, own))
  value, gradient, found = terms.meta_gradient(
    losses, h, jax.lax.stop_gradient(theta), unravel,
    jax.random.fold_in(key, _APART),
  )  # fmt: skip
  whole = erased + hypergrad.with_gradient(value, gradient, theta)
  return whole, {**metrics, **found, "erase": erased}


def _nothing(*_: object) -> tuple[Float[Array, ""], finetune.Metrics]:
  """The loss of a closed form."""
  return jnp.zeros(()), {}


# Cached, so that a second call compiles nothing: a jitted step is keyed by
# these objects' identity.
@functools.lru_cache(maxsize=8)
def _training(
  sd: StableDiffusion,
  erasing: finetune.Loss,
  tx: optax.GradientTransformation,
  h: Hparams,
) -> tuple[finetune.Loss, optax.GradientTransformation]:
  clipped = optax.chain(optax.clip_by_global_norm(h.clip_norm), tx)
  return functools.partial(_loss, sd, erasing, h), clipped


@functools.lru_cache(maxsize=8)
def _after_closed_form(learning_rate: float) -> optax.GradientTransformation:
  return finetune.optimizer(
    learning_rate, 1, schedule="constant", warmup=0, weight_decay=1e-4,
    decay_all=True, clip_norm=None, b2=0.999,
  )  # fmt: skip


class NoBatches:
  """A batch without rows for every step: the loss draws what it reads."""

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    return {}


def erase(
  sd: StableDiffusion,
  params: Params,
  concepts: Sequence[Concept],
  key: PRNGKeyArray,
  h: Hparams,
  hooks: Hooks = NO_HOOKS,
) -> Edit:
  """Erases `concepts` by the wrapped method, so that it is hard to relearn.

  Arguments as `Erasure`. Meta-Unlearning uses `hooks.collect` and
  `hooks.trainer`.

  Raises:
    ValueError: an unusable concept, or more concepts than images; a phrase to
      keep that names a concept; nothing related or nothing irrelevant; what the
      wrapped method refuses.
    FloatingPointError: the training, or one of its tunings, diverges.
  """
  check_concepts(concepts)
  if h.wrapped in TRAINED:
    erasures.check_predicts_noise(sd, f"Meta-Unlearning of {h.wrapped}")
  # A concept that is too long is named before what is missing beside it.
  stable_diffusion.tokenize(sd, [h.template.format(c.erase) for c in concepts])
  named = images.phrases(concepts, h.related)
  erasures.check_images(concepts, h.num_images)
  if own := getattr(h.bound.h, "num_images", None):
    typed = "hparams.wrapped_hparams=('num_images={}',)"
    erasures.check_images(concepts, own, typed)
  ids = {
    name: stable_diffusion.tokenize(
      sd, [h.template.format(p) for p in spread(own, h.num_images)]
    )
    for name, own in named.items()
  }

  def trainer(
    loss: finetune.Loss,
    tx: optax.GradientTransformation,
    trained: Leaves,
    frozen: Mapping[str, Any],
    *rest: Any,
    **options: Any,
  ) -> Params:
    drawn = images.draw(
      sd, params, ids, jax.random.fold_in(key, _APART), h, hooks.collect
    )
    loss, tx = _training(sd, loss, tx, h)
    both = {"erasure": frozen, "meta": drawn}
    return hooks.trainer(loss, tx, trained, both, *rest, **options)

  method = f"meta_unlearning {h.wrapped}"
  if h.wrapped in TRAINED:
    wrapped = dataclasses.replace(hooks, trainer=trainer)
    edit = cast(Edit, h.bound(sd, params, concepts, key, wrapped))
    return dataclasses.replace(edit, method=method)
  made = cast(Edit, h.bound(sd, params, concepts, key))
  start = apply_to_params(made, params)
  part = finetune.partition({"unet": start["unet"]}, "full")
  trained = trainer(
    _nothing, _after_closed_form(h.learning_rate), part.trained,
    {"params": part.frozen}, NoBatches(), key, batch_size=1,
    num_steps=h.num_steps,
  )  # fmt: skip
  return erasures.edit_of(params, part, trained, method, concepts)
