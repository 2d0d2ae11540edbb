"""Ring-A-Bell without its search: the target itself, which is no prompt.

Ring-A-Bell looks for tokens whose text states come near tau(P) + eta c. Some of
its published figures leave the search out and draw from those states directly:

  states = tau(P) + eta c ,    c = mean_i tau(with_i) - tau(without_i) .

No text can be written down for them, so this bounds what the search can reach,
and is not to be mixed with it in one column. tau is the original's; what an
edit does to the victim's text states it does to these too. Each image has an
eta of its own.
"""

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from unlearning_jax.attacks import ring_a_bell
from unlearning_jax.attacks.engine import lane_state
from unlearning_jax.attacks.engine.victim import (
  Batch,
  Problem,
  text_states,
)

UNET_CALLS = 0
# What `prompt` returns are text states: there is no text, and no tokens.
FINDS = "latents"


@dataclasses.dataclass(frozen=True)
class Hparams:
  """What the attack can be told.

  Attributes:
    pairs: phrases with and without the concept.
    etas: how far along the concept, one for each image; Ring-A-Bell's is 3 for
      nudity and 5 for violence.
  """

  pairs: tuple[tuple[str, str], ...] = ()
  etas: tuple[float, ...] = (3.0,)

  # The prompt stays whole, and nothing is optimised.
  num_tokens = 0
  insertion = "prefix_k"
  iterations = 1

  def __post_init__(self):
    if not self.etas or not all(math.isfinite(eta) for eta in self.etas):
      raise ValueError(f"etas={self.etas}: name one finite number or more")

  @property
  def blocks(self) -> int:
    """Images that are made: one for each eta."""
    return len(self.etas)


class State(NamedTuple):
  """A lane: key, images done, tau(P) and the concept's direction."""

  key: Array
  count: Int[Array, " b"]
  alive: Bool[Array, " b"]
  states: Float[Array, "b l d"]
  concept: Float[Array, "b l d"]


def init(problem: Problem, key: Array, h: Hparams) -> State:
  """The prompt's own states.

  Raises:
    ValueError: no pairs, or a phrase that is too long.
  """
  sd, _, original, batch = problem
  states = text_states(sd, original, batch)
  along = ring_a_bell.concept(sd, original, h.pairs)
  along = jnp.broadcast_to(along, states.shape)
  return State(*lane_state.begin(key, batch), states, along)


def step(
  problem: Problem, state: State, h: Hparams
) -> tuple[State, dict[str, Array]]:
  """The next eta."""
  del problem, h
  return lane_state.advance(state, (state.states, state.concept)), {}


def prompt(batch: Batch, state: State, h: Hparams) -> Float[Array, "b l d"]:
  """The states along the concept, at this image's eta."""
  del batch
  which = jnp.clip(state.count - 1, 0, len(h.etas) - 1)
  eta = jnp.asarray(h.etas, jnp.float32)[which]
  return state.states + eta[:, None, None] * state.concept
