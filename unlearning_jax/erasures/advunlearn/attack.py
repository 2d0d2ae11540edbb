"""AdvUnlearn's inner attack: tokens before the phrase that bring it back.

  min over the embeddings e of k new tokens
      | f(x_t, t, [e, c]) - f*(x_t, t, c) |^2

Every update draws new trajectories and a new timestep.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

T = TypeVar("T")
ATTACKS = ("pgd", "fast")


def layout(
  phrase: str, tokens: int, k: int, length: int, legacy: bool = False
) -> Int[np.ndarray, " l"]:
  """The gather that puts `k` slots before a phrase.

  An index below l is a position of the padded phrase; one from l on is a slot.

  Args:
    phrase: the text.
    tokens: its tokens, without start and end of text.
    k: the number of slots.
    length: l, the tokens that the text encoder reads.
    legacy: whether the k tokens after as many as the phrase has words are lost,
      as in the release: part of every word that is several tokens.

  Raises:
    ValueError: there is no room for the slots.
  """
  if tokens + k > length - 2:
    raise ValueError(
      f"num_tokens={k}: {phrase!r} has {tokens} tokens; allowed together: "
      f"{length - 2}; shorten it or take fewer"
    )
  lost = 1 + len(phrase.split()) if legacy else length - k
  kept = [i for i in range(1, length) if not lost <= i < lost + k]
  return np.array([0, *range(length, length + k), *kept], np.int32)


def spliced(
  embeds: Float[Array, "b l d"],
  new: Float[Array, "b k d"],
  source: Int[Array, "b l"],
) -> Float[Array, "b l d"]:
  """Token embeddings with the slots filled, by `layout`."""
  both = jnp.concatenate([embeds, new], axis=1)
  return jnp.take_along_axis(both, source[..., None], axis=1)


def distance(
  predicted: Float[Array, "b h w c"], wanted: Float[Array, "b h w c"]
) -> Float[Array, ""]:
  """The attack's objective: a mean over elements, a sum over rows.

  A row's gradient is then the same in every batch.
  """
  return jnp.square(predicted - wanted).mean((1, 2, 3)).sum()


def adversarial(
  loss: Callable[[Array, T], Float[Array, ""]],
  start: Float[Array, "b k d"],
  draws: T,
  kind: str,
  learning_rate: float,
  legacy: bool = False,
) -> Float[Array, "b k d"]:
  """The embeddings after one update for each of the draws.

  Args:
    loss: of embeddings and one draw, see `distance`.
    start: the first embeddings.
    draws: led by the updates.
    kind: "pgd" for Adam, "fast" for steps along the sign of the gradient.
    learning_rate: Adam's, or the size of the signed step.
    legacy: as the release: the gradients of all updates add up, "fast" gives
      Adam their signs, and the last update is made but not returned.
  """
  sign = kind == "fast"
  tx = optax.adam(learning_rate)
  if sign and not legacy:
    tx = optax.sgd(learning_rate)

  def body(carry, draw: T):
    now, opt, total, _ = carry
    slope = jax.grad(loss)(now, draw)
    if legacy:
      slope += total
    if sign:
      slope = jnp.sign(slope)
    updates, opt = tx.update(slope, opt)
    return (now + updates, opt, slope, now), None

  nothing = jnp.zeros_like(start)
  carry = (start, tx.init(start), nothing, start)
  (now, _, _, before), _ = jax.lax.scan(body, carry, draws)
  return before if legacy else now
