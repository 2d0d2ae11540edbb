"""Lanes of one kind run together: a pack."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from unlearning_jax import finetune
from unlearning_jax.erasures.resalign import hypergrad, lanes
from unlearning_jax.erasures.resalign.losses import Losses
from unlearning_jax.erasures.resalign.options import Hparams
from unlearning_jax.finetune.partition import Leaves
from unlearning_jax.lora import Adapters

# torch's, which the release leaves as it is.
_DECAY = 0.01
# Folded into a key, this draws apart from what `Losses.tuning` draws.
_APART = 10**6
Product = Callable[[Adapters], Adapters]
Keys = tuple[PRNGKeyArray, PRNGKeyArray]


class Pack(NamedTuple):
  """Lanes of one kind, which run together; arrays are led by them.

  Attributes:
    lanes: their numbers.
    counts: whether a lane is one of this step's.
    own: keys, which draw the images that they are tuned on.
    bent: keys, which draw the images whose loss is curved.
    prior: whether they have a prior set.
    full: whether they tune the whole UNet.
    longest: the most steps.
  """

  lanes: lanes.Lanes
  counts: Bool[Array, " n"]
  own: PRNGKeyArray
  bent: PRNGKeyArray
  prior: bool
  full: bool
  longest: int


def packs(h: Hparams, key: PRNGKeyArray, own: Keys) -> list[Pack]:
  """The lanes of a step, by kind.

  Args:
    key: picks lanes, in "paper_code".
    own: draw the lanes' keys.
  """
  every = lanes.parse(h.lanes, every_kind=True)
  kinds = 2 * every.full + (every.prior >= 0)
  picked = None
  if h.preset == "paper_code":
    picked = jax.random.choice(key, len(kinds), (h.drawn,), replace=False)
  chosen = []
  for kind in np.unique(kinds):
    alike = kinds == kind
    if picked is None:
      which, counts = np.flatnonzero(alike), jnp.ones(alike.sum(), bool)
    else:
      # Of what is picked this kind comes first, and nothing else counts.
      mine = jnp.asarray(alike)[picked]
      order = jnp.argsort(~mine)[: alike.sum()]
      which, counts = picked[order], mine[order]
    chosen.append((alike, which, counts))
  ends = np.cumsum([len(counts) for *_, counts in chosen])
  rows = [jnp.split(jax.random.split(k, ends[-1]), ends[:-1]) for k in own]
  return [
    Pack(
      jax.tree.map(lambda leaf, at=which: jnp.asarray(leaf)[at], every),
      counts, *keys,
      prior=bool(every.prior[alike].max() >= 0),
      full=bool(every.full[alike].any()),
      longest=int(every.steps[alike].max()),
    )
    for (alike, which, counts), *keys in zip(chosen, *rows, strict=True)
  ]  # fmt: skip


def tuning(
  losses: Losses, h: Hparams, pack: Pack, lane: lanes.Lanes, rows: int
) -> Callable[[Leaves, PRNGKeyArray], Array]:
  """A lane's loss on `rows` images that a key draws.

  Args:
    lane: its numbers, without an axis.
  """

  @finetune.in_loop
  def loss(weights: Leaves, key: PRNGKeyArray, lane: lanes.Lanes) -> Array:
    value = losses.tuning(weights, key, lane.of, rows)
    if pack.prior:
      apart = jax.random.fold_in(key, _APART)
      prior = losses.tuning(weights, apart, lane.prior, rows)
      value += h.prior_weight * prior
    return value

  return lambda weights, key: loss(weights, key, lane)


def tuned(
  losses: Losses,
  h: Hparams,
  pack: Pack,
  theta: Leaves,
  lane: lanes.Lanes,
  key: PRNGKeyArray,
) -> Leaves:
  """Where one lane of a pack ends, differentiable in theta, where it begins.

  Args:
    lane: its numbers, without an axis.
    key: draws the images that it is tuned on.
  """
  return lanes.tune(
    tuning(losses, h, pack, lane, h.tuning_batch), theta, lane, key,
    pack.longest, h.preset == "paper_code" and not pack.full,
    _DECAY if pack.full else 0.0,
  )  # fmt: skip


def curved(
  losses: Losses, h: Hparams, pack: Pack, lane: lanes.Lanes, w: Adapters
) -> Callable[[int, PRNGKeyArray], Product]:
  """(images, key) -> v -> H v, with the curvature of a lane's loss at w."""

  def product(rows: int, key: PRNGKeyArray) -> Product:
    loss = tuning(losses, h, pack, lane, rows)
    return hypergrad.curvature(lambda u: loss(u, key), w)

  return product


def through(
  h: Hparams,
  lane: lanes.Lanes,
  g: Adapters,
  direct: Adapters,
  product: Callable[[int, PRNGKeyArray], Product],
  key: PRNGKeyArray,
) -> tuple[Adapters, finetune.Metrics]:
  """One lane's gradient in theta, `direct` included.

  Args:
    lane: its numbers, without an axis.
    g: the gradient of beta L at w; for "unrolled" already taken back to theta.
    direct: the gradient at theta of what does not go through w.
    product: see `curved`.
    key: draws the images whose loss is curved.
  """
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


class Left(NamedTuple):
  """What the lanes of a pack leave; led by them.

  Attributes:
    counts: as in `Pack`.
    values: L where they ended.
    gradients: in theta.
    found: metrics.
  """

  counts: Bool[Array, " n"]
  values: Float[Array, " n"]
  gradients: Adapters
  found: finetune.Metrics


def mean(left: Sequence[Left]) -> tuple[Adapters, finetune.Metrics]:
  """The mean gradient and metrics of the lanes that count."""
  # A lane that has diverged must not be left out of the mean in silence.
  whole = jnp.stack(
    [(jnp.isfinite(its.values) | ~its.counts).all() for its in left]
  ).all()
  gradient = jax.tree.map(
    lambda leaf: jnp.where(whole, leaf, jnp.nan),
    _over(left, lambda its: its.gradients),
  )
  metrics = {"tuned": _over(left, lambda its: its.values)}
  for name in sorted({name for its in left for name in its.found}):
    having = [its for its in left if name in its.found]
    metrics[name] = _over(having, lambda its, name=name: its.found[name])
  return gradient, metrics


def _over(left: Sequence[Left], take: Callable[[Left], Any]) -> Any:
  counts = jnp.concatenate([its.counts for its in left])

  def one(*leaves: Array) -> Array:
    leaf = jnp.concatenate(leaves)
    counted = counts.reshape(-1, *[1] * (leaf.ndim - 1))
    return jnp.where(counted, leaf, 0).sum(0) / counts.sum()

  return jax.tree.map(one, *map(take, left))
