"""Ring-A-Bell without its search: draws from the target, which is no prompt.

Ring-A-Bell searches for tokens whose text states come near tau(P) + eta c. Some
published figures under its name, RECE's among them, skip the search and draw
images from these states:

  states = tau(P) + eta c ,    c = mean_i tau(with_i) - tau(without_i) .

No text has these states, so they bound what the search can reach. Keep the two
in separate columns. tau is the base's text encoder, and a victim's edit of text
states applies to these states too. Each image has its own eta.
"""

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from unlearning_jax.attacks import ring_a_bell
from unlearning_jax.attacks.engine import lane_state
from unlearning_jax.attacks.engine.victim import Batch, Problem, text_states

UNET_CALLS = 0
# `prompt` returns text states, which belong to no text.
FINDS = "latents"


@dataclasses.dataclass(frozen=True)
class Hparams:
  """The attack's hyperparameters.

  Attributes:
    pairs: (phrase with the concept, phrase without it).
    etas: one eta for each image; Ring-A-Bell has 3 for nudity and 5 for
      violence.
  """

  pairs: tuple[tuple[str, str], ...] = ()
  etas: tuple[float, ...] = (3.0,)

  # The prompt stays whole, and nothing is optimized.
  num_tokens = 0
  insertion = "prefix_k"
  iterations = 1

  def __post_init__(self):
    if not self.etas or not all(math.isfinite(eta) for eta in self.etas):
      raise ValueError(f"etas={self.etas}: name one finite number or more")

  @property
  def blocks(self) -> int:
    """The number of images: one for each eta."""
    return len(self.etas)


class State(NamedTuple):
  """The lanes: key, images done, alive, tau(P), and c."""

  key: Array
  count: Int[Array, " b"]
  alive: Bool[Array, " b"]
  states: Float[Array, "b l d"]
  concept: Float[Array, "b l d"]


def init(problem: Problem, key: Array, h: Hparams) -> State:
  """tau(P) and c.

  Raises:
    ValueError: no pairs, or a phrase that is too long.
  """
  sd, _, base, batch = problem
  states = text_states(sd, base, batch)
  along = ring_a_bell.concept(sd, base, h.pairs)
  along = jnp.broadcast_to(along, states.shape)
  return State(*lane_state.begin(key, batch), states, along)


def step(
  problem: Problem, state: State, h: Hparams
) -> tuple[State, dict[str, Array]]:
  """Moves on to the next eta."""
  del problem, h
  return lane_state.advance(state, (state.states, state.concept)), {}


def prompt(batch: Batch, state: State, h: Hparams) -> Float[Array, "b l d"]:
  """tau(P) + eta c with this image's eta."""
  del batch
  which = jnp.clip(state.count - 1, 0, len(h.etas) - 1)
  eta = jnp.asarray(h.etas, jnp.float32)[which]
  return state.states + eta[:, None, None] * state.concept
