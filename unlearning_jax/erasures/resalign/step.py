"""A step of ResAlign: all lanes tune, and each leaves its gradient in theta."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from unlearning_jax import finetune
from unlearning_jax.erasures.resalign import hypergrad, whole
from unlearning_jax.erasures.resalign.losses import Losses
from unlearning_jax.erasures.resalign.options import Hparams, remain_weight
from unlearning_jax.erasures.resalign.packs import (
  Left,
  Pack,
  curved,
  mean,
  packs,
  through,
  tuned,
)
from unlearning_jax.lora import Adapters
from unlearning_jax.stable_diffusion import Params, StableDiffusion


def loss(
  sd: StableDiffusion,
  join: Callable[[Any, Any], Params],
  h: Hparams,
  trained: Adapters,
  frozen: Mapping[str, Any],
  batch: Mapping[str, Array],
  key: PRNGKeyArray,
) -> tuple[Float[Array, ""], finetune.Metrics]:
  """The step's value, whose gradient is the mean of the lanes', and metrics."""
  theta = jax.lax.stop_gradient(trained)
  losses = Losses(sd, join, frozen, batch)
  keys, beta = jax.random.split(key, 7), h.resilience
  noise = keys[4] if h.preset == "paper_code" else keys[0]
  every = packs(h, keys[2], (keys[3], keys[5]))
  adapted = [pack for pack in every if not pack.full]
  count = sum(len(pack.counts) for pack in adapted)

  def each(
    function: Callable[..., Any],
    *mapped: Any,
    at_once: int = h.lanes_at_once or count + 2,
  ) -> Any:
    return jax.lax.map(
      lambda one: function(*one),
      mapped,
      batch_size=None if at_once == 1 else at_once,
    )

  ends = [_tune(losses, h, pack, theta, each) for pack in adapted]
  points = jax.tree.map(
    lambda one, *more: jnp.concatenate([one[None], *more]),
    theta, *(w for w, _ in ends),
  )  # fmt: skip
  values, slopes, remain, held = _pulls(
    losses, h, points, (keys[0], noise, keys[6]), keys[1], each
  )
  alpha = remain_weight(h, batch["step"][0])
  direct = jax.tree.map(
    lambda slope, leaf: (1 - beta) * slope[0] + alpha * leaf, slopes, held
  )
  left, begin = [], 1
  for pack, (w, back) in zip(adapted, ends, strict=True):
    rows = slice(begin, begin := begin + len(pack.counts))
    g = jax.tree.map(lambda slope, rows=rows: beta * slope[rows], slopes)
    if back:
      (g,) = back(g)
    its = each(
      lambda lane, w, g, key, pack=pack: through(
        h, lane, g, direct, curved(losses, h, pack, lane, w), key
      ),
      pack.lanes, w, g, pack.bent,
    )  # fmt: skip
    left.append(Left(pack.counts, values[rows], *its))
  left += [
    whole.left_by(losses, h, pack, theta, direct, (keys[6], noise))
    for pack in every
    if pack.full
  ]
  gradient, metrics = mean(left)
  metrics |= {"concept": values[0], "remain": remain, "alpha": alpha}
  value = (1 - beta) * values[0] + beta * metrics["tuned"] + alpha * remain
  return hypergrad.with_gradient(value, gradient, trained), metrics


def _pulls(
  losses: Losses,
  h: Hparams,
  points: Adapters,
  keys: tuple[PRNGKeyArray, PRNGKeyArray, PRNGKeyArray],
  remain_key: PRNGKeyArray,
  each: Callable[..., Any],
) -> tuple[Float[Array, " n"], Adapters, Float[Array, ""], Adapters]:
  """L and its gradient at points; at the first, those of what remains.

  Args:
    points: theta, and every w.
    keys: draw L's noise at theta, that at w, and the timesteps.
    remain_key: draws those of what remains.
    each: maps a function over what is led by points.
  """
  gradient = jax.value_and_grad(finetune.in_loop(losses.squared))
  # A CPU gains nothing by more rows at once.
  if jax.default_backend() == "cpu":
    each = functools.partial(each, at_once=1)
  first, later = (
    losses.concept_rows((keys[2], key), h.concept_batch) for key in keys[:2]
  )
  theta = jax.tree.map(lambda leaf: leaf[0], points)
  more = len(jax.tree.leaves(points)[0]) - 1
  rows, held = [first, *[later] * more], losses.remain_rows(remain_key)
  # Where rows are as many, all are one, so that the gradient is compiled once.
  joined = jax.tree.map(jnp.shape, first) == jax.tree.map(jnp.shape, held)
  if joined:
    rows.append(held)
    points = jax.tree.map(
      lambda leaf: jnp.concatenate([leaf, leaf[:1]]), points
    )
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
  values, slopes = each(gradient, points, stacked)
  if joined:
    remain, at_theta = values[-1], jax.tree.map(lambda leaf: leaf[-1], slopes)
    values, slopes = jax.tree.map(lambda leaf: leaf[:-1], (values, slopes))
  else:
    remain, at_theta = gradient(theta, held)
  return -values, jax.tree.map(jnp.negative, slopes), remain, at_theta


def _tune(
  losses: Losses,
  h: Hparams,
  pack: Pack,
  theta: Adapters,
  each: Callable[..., Any],
) -> tuple[Adapters, Callable[[Adapters], tuple[Adapters]] | None]:
  """Every w of a pack, and for "unrolled" the way back to theta."""

  def tune(thetas: Adapters) -> Adapters:
    one = functools.partial(tuned, losses, h, pack)
    return each(one, thetas, pack.lanes, pack.own)

  thetas = jax.tree.map(
    lambda leaf: jnp.broadcast_to(leaf, (len(pack.counts), *leaf.shape)), theta
  )
  # Back through all lanes at once: the network is stored once for all of them.
  unrolled = h.preset == "fixed" and h.hypergrad == "unrolled"
  return jax.vjp(tune, thetas) if unrolled else (tune(thetas), None)
