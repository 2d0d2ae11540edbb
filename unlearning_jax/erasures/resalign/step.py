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
    at_once: int = h.lanes_at_once or count + 1,
  ) -> Any:
    return jax.lax.map(
      lambda one: function(*one),
      mapped,
      batch_size=None if at_once == 1 else at_once,
    )

  # theta and every w in one, so that the gradient is compiled once.
  ends = [_tune(losses, h, pack, theta, each) for pack in adapted]
  points = jax.tree.map(
    lambda one, *more: jnp.concatenate([one[None], *more]),
    theta, *(w for w, _ in ends),
  )  # fmt: skip
  concept = finetune.in_loop(
    lambda its, key: losses.concept(its, (keys[6], key), h.concept_batch)
  )
  # A CPU gains nothing by more rows than these.
  alone = {"at_once": 1} if jax.default_backend() == "cpu" else {}
  values, slopes = each(
    jax.value_and_grad(concept), points,
    jnp.stack([keys[0], *[noise] * count]), **alone,
  )  # fmt: skip
  remain, held = jax.value_and_grad(losses.remain)(theta, keys[1])
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
