"""How a loss after tuning moves with the weights before it.

Tuning takes theta to w. The chain rule asks for (dw/dtheta)^T g, where g is the
gradient of a loss at w. Where tuning is near

  w = argmin_u L(u) + |u - theta|^2 / (2 gamma),

dw/dtheta is (1 + gamma H)^-1, with L's Hessian H at w. `neumann` sums that
inverse's series by products with H alone, which `curvature` makes. n steps of
gradient descent at a rate r come near it with gamma = n r: on a quadratic loss
(1 - r H)^n against (1 + n r H)^-1.

`released` is the series as the paper's code sums it, with gamma = 1.

All trees of arrays; the parameters are a tree too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

Tree = TypeVar("Tree")


def curvature(
  loss: Callable[[Tree], Array], at: Tree
) -> Callable[[Tree], Tree]:
  """The product v -> H v with the Hessian of `loss` at `at`."""
  gradient = jax.grad(loss)
  return lambda v: jax.jvp(gradient, (at,), (v,))[1]


def neumann(
  g: Tree,
  product: Callable[[Tree], Tree],
  gamma: float | Float[Array | np.ndarray, ""],
  terms: int,
) -> tuple[Tree, Float[Array, ""]]:
  """The first `terms` terms of (1 + gamma H)^-1 g = sum_k (-gamma H)^k g.

  Returns:
    The sum, and the factor by which the last two terms grow, which is at most
    gamma |H|. From 1 on the series has no sum; below 1 it may still have none.
  """

  # A loop, so that the product is compiled once.
  def more(_: Array, state: tuple[Tree, Tree, Array]):
    term, total, _ = state
    before = optax.global_norm(term)
    term = jax.tree.map(lambda leaf: -gamma * leaf, product(term))
    # Of a zero gradient nothing grows.
    grown = optax.global_norm(term) / jnp.maximum(before, 1e-30)
    return term, optax.tree.add(total, term), grown

  zero = jnp.zeros_like(optax.global_norm(g))
  _, total, grown = jax.lax.fori_loop(0, terms - 1, more, (g, g, zero))
  return total, grown


class Attempt(NamedTuple):
  """One attempt of `released`: how many were made, its s, its sum, its end."""

  made: Array
  s: Array
  total: Any
  kept: Array


def released(
  g: Tree,
  direct: Tree,
  product: Callable[[Tree, Array], Tree],
  *,
  terms: int,
  cap: float,
  attempts: int = 6,
) -> tuple[Tree, Float[Array, ""], Float[Array, ""]]:
  """The gradient in theta, as the release makes it.

  An attempt sums v = sum_k J^k g with J = 1 - s (1 + H) and s = 1, and gives
  s v + direct. It fails if J makes the mean tensor of v grow, or if the result
  is longer than `cap`; then s is halved, and H is that of another image. After
  six, `direct` alone is used. So the cap does not shorten the gradient: it
  takes g out of it. Without curvature g's weight is 1 - (1 - s)^terms.

  Args:
    g: the gradient at w.
    direct: the gradient at theta of what does not go through w.
    product: (v, attempt) -> H v.
    terms: of the sum.
    cap: the longest result.

  Returns:
    The gradient, the last s, and whether g was left out, 0 or 1.
  """

  def attempt(state: Attempt) -> Attempt:
    s = jnp.where(state.made == 0, 1.0, state.s / 2)

    def more(_: Array, sum_: tuple[Tree, Array]) -> tuple[Tree, Array]:
      v, grows = sum_
      bent = optax.tree.add(v, product(v, state.made))
      stepped = optax.tree.add_scale(v, -s, bent)
      return optax.tree.add(g, stepped), grows | (_mean_growth(v, stepped) > 1)

    v, grows = jax.lax.fori_loop(0, terms - 1, more, (g, jnp.bool_(False)))
    total = optax.tree.add_scale(direct, s, v)
    kept = ~grows & ~(optax.global_norm(total) > cap)
    return Attempt(state.made + 1, s, total, kept)

  # As in the release, what is not a number is returned, and ends the training.
  begin = Attempt(jnp.int32(0), jnp.float32(1), direct, jnp.bool_(False))
  end = jax.lax.while_loop(
    lambda state: ~state.kept & (state.made < attempts), attempt, begin
  )
  total = jax.tree.map(
    lambda a, b: jnp.where(end.kept, a, b), end.total, direct
  )
  return total, end.s, 1.0 - end.kept


def _mean_growth(before: Tree, after: Tree) -> Float[Array, ""]:
  """Mean over tensors of |after| / |before|, without those that were zero."""
  norms = [
    jnp.stack([jnp.linalg.norm(leaf) for leaf in jax.tree.leaves(tree)])
    for tree in (before, after)
  ]
  counted = norms[0] > 0
  ratios = jnp.where(counted, norms[1] / jnp.where(counted, norms[0], 1), 0)
  return ratios.sum() / jnp.maximum(counted.sum(), 1)


def with_gradient(
  value: Float[Array, ""], gradient: Tree, at: Tree
) -> Float[Array, ""]:
  """A scalar of this value whose gradient at `at` is `gradient`."""
  moved = optax.tree.sub(at, jax.lax.stop_gradient(at))
  zero = optax.tree.vdot(jax.lax.stop_gradient(gradient), moved)
  return jax.lax.stop_gradient(value) + zero
