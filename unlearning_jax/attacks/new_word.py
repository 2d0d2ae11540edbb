"""Draws the rows with words that Concept Inversion learnt before.

Its paper learns one word from images of the concept, then draws every prompt
with it. The word may come from another model than the one it is tried on: what
is learnt on the original and works on the victim was never erased. Each image
tries the next word, so that words from several inversions are several tries.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from unlearning_jax.attacks.engine import lane_state
from unlearning_jax.attacks.engine.victim import (
  Batch,
  Problem,
  token_table,
)

UNET_CALLS = 0
# What `prompt` returns are embeddings: there is no text to decode.
FINDS = "words"


@dataclasses.dataclass(frozen=True)
class Hparams:
  """What the attack can be told.

  Attributes:
    words: of each word the embeddings of its k tokens. `launch.attack` fills
      them in from the run that `--config.new_words` names.
    insertion: where they go, see `engine.insertion`.
  """

  words: tuple[tuple[tuple[float, ...], ...], ...] = ()
  insertion: str = "prefix_k"

  # Nothing is optimised.
  iterations = 1

  def __post_init__(self):
    shapes = {np.shape(word) for word in self.words}
    if len(shapes) > 1 or any(len(shape) != 2 for shape in shapes):
      raise ValueError(
        f"words: of the shapes {sorted(shapes)}; allowed: all (k, width)"
      )

  @property
  def blocks(self) -> int:
    """Images that are made: one for each word."""
    return len(self.words)

  @property
  def num_tokens(self) -> int:
    """Tokens of a word."""
    return len(self.words[0]) if self.words else 0


class State(NamedTuple):
  """A lane: its key and how many images it has had."""

  key: Array
  count: Int[Array, " b"]
  alive: Bool[Array, " b"]


def init(problem: Problem, key: Array, h: Hparams) -> State:
  """No image yet.

  Raises:
    ValueError: no words, or of another model's width.
  """
  victim, batch = problem.victim, problem.batch
  width = token_table(victim).shape[1]
  if not h.words or len(h.words[0][0]) != width:
    raise ValueError(
      f"words: {len(h.words)} of width "
      f"{len(h.words[0][0]) if h.words else 0}; allowed: one or more of width "
      f"{width}, from a run of concept_inversion: set --config.new_words"
    )
  return State(*lane_state.begin(key, batch))


def step(
  problem: Problem, state: State, h: Hparams
) -> tuple[State, dict[str, Array]]:
  """The next word."""
  del problem, h
  return state._replace(count=state.count + 1), {}


def prompt(batch: Batch, state: State, h: Hparams) -> Float[Array, "b k d"]:
  """The embeddings of this image's word."""
  del batch
  which = jnp.clip(state.count - 1, 0, len(h.words) - 1)
  return jnp.asarray(h.words, jnp.float32)[which]
