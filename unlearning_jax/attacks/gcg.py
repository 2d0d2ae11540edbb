"""GCG (Zou et al. 2023): greedy coordinate gradient, on a diffusion loss.

The k tokens are kept discrete. An iteration takes the loss' gradient for every
token in every slot, G_j = E dL/de_j, draws candidates that each replace one
slot's token by one of its `top` most promising, evaluates all of them on one
(t, eps), and keeps the best of them and the prompt as it was:

  z <- argmin_{z' in candidates + z} |eps - eps_v(x_t, c(z'))|^2 .

A candidate costs a forward pass, so there are few: 8 by default, where the
language model's attack has 512.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from unlearning_jax.attacks.shared import lane_state, losses
from unlearning_jax.attacks.shared.victim import Batch, Victim, token_table
from unlearning_jax.attacks.unlearn_diff_atk import token_gradient
from unlearning_jax.stable_diffusion import StableDiffusion

UNET_CALLS = 1


@dataclasses.dataclass(frozen=True)
class Hparams(losses.Budget):
  """What the attack can be told, besides its budget.

  Attributes:
    k: adversarial tokens.
    insertion: where they go, see `shared.insertion`.
    top: tokens of the largest negative gradient that a slot chooses from.
    candidates: prompts that are tried in an iteration.
  """

  timesteps: str = "random"
  k: int = 5
  insertion: str = "prefix_k"
  top: int = 64
  candidates: int = 8

  def __post_init__(self):
    for key in ("top", "candidates"):
      if getattr(self, key) < 1:
        raise ValueError(f"{key}={getattr(self, key)}: must be at least 1")


class State(NamedTuple):
  """A lane: its key, iterations done, whether it is finite, its tokens."""

  key: Array
  count: Int[Array, " b"]
  alive: Bool[Array, " b"]
  tokens: Int[Array, "b k"]


def init(
  sd: StableDiffusion,
  victim: Victim,
  original: Victim,
  batch: Batch,
  key: Array,
  h: Hparams,
) -> State:
  """Tokens drawn at random.

  Raises:
    ValueError: a hyperparameter, or a model, that the loss is not made for.
  """
  del victim, original
  losses.check(h, "denoise", sd.schedule)
  lanes = lane_state.begin(key, batch)
  return State(*lanes, lane_state.random_tokens(lanes[0], batch, (h.k,)))


def step(
  sd: StableDiffusion,
  victim: Victim,
  original: Victim,
  batch: Batch,
  state: State,
  h: Hparams,
) -> tuple[State, dict[str, Array]]:
  """One iteration of every lane; a lane that is not finite stays as it was."""
  drawn = losses.draw(sd, state.key, state.count, h)
  before, gradient = token_gradient(
    sd, victim, original, batch, state.tokens, drawn, h.criterion
  )
  keys = losses.draw_key(state.key, state.count, h)
  keys = jax.vmap(lambda key: jax.random.fold_in(key, 2))(keys)
  choose = functools.partial(substitutes, h=h)
  tried = jax.vmap(choose)(keys, state.tokens, gradient)
  after = evaluate(sd, victim, original, batch, tried, drawn, h.criterion)
  # Where none is better, the prompt stays.
  every = jnp.concatenate([before[:, None], after], axis=1)
  options = jnp.concatenate([state.tokens[:, None], tried], axis=1)
  best = every.argmin(axis=1)
  tokens = jnp.take_along_axis(options, best[:, None, None], axis=1)[:, 0]
  new = lane_state.advance(state, (gradient, every), tokens=tokens)
  info = {
    "loss": before,
    "best_loss": every.min(axis=1),
    "gradient_rms": lane_state.rms(gradient),
    "replaced": (best > 0).astype(jnp.float32),
  }
  return new, info


def substitutes(
  key: Array,
  tokens: Int[Array, " k"],
  gradient: Float[Array, "k v"],
  h: Hparams,
) -> Int[Array, "m k"]:
  """One lane's candidates: the tokens with one of them replaced.

  Args:
    key: the lane's.
    tokens: positions in the vocabulary.
    gradient: for every token in every slot.
    h: how many, and of how many the tokens are drawn.
  """
  top = min(h.top, gradient.shape[1])
  promising = jax.lax.top_k(-gradient, top)[1]
  which, rank = jax.random.split(key)
  # Evenly over the slots, from a random one on.
  slots = jax.random.randint(which, (), 0, h.k) + jnp.arange(h.candidates)
  slots = slots % h.k
  ranks = jax.random.randint(rank, (h.candidates,), 0, top)
  new = promising[slots, ranks]
  here = jnp.arange(h.k)[None] == slots[:, None]
  return jnp.where(here, new[:, None], tokens[None])


def evaluate(
  sd: StableDiffusion,
  victim: Victim,
  original: Victim,
  batch: Batch,
  tried: Int[Array, "b m k"],
  drawn: losses.Draw,
  criterion: str = "l2",
) -> Float[Array, "b m"]:
  """The loss of every candidate, one candidate of each lane at a time."""
  table = token_table(victim)

  def one(tokens: Array) -> Array:
    embeds = table[batch.vocabulary[tokens]]
    return losses.of_embeddings(
      sd, victim, original, batch, embeds, drawn, criterion
    )

  return jax.lax.map(one, tried.swapaxes(0, 1)).swapaxes(0, 1)


def prompt(batch: Batch, state: State, h: Hparams) -> Int[Array, "b k"]:
  """The tokens as they stand."""
  del h
  return batch.vocabulary[state.tokens]
