"""Draws the rows with words that Concept Inversion learned before.

That paper learns one word from images of the concept, then draws every prompt
with it. The word may also come from another model: if a word learned on the
base works on the victim, its concept was never erased. Each image tries the
next word, so several words are several tries.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from unlearning_jax.attacks.engine import lane_state
from unlearning_jax.attacks.engine.victim import Batch, Problem, token_table

UNET_CALLS = 0
# `prompt` returns embeddings, which no text stands for.
FINDS = "words"


@dataclasses.dataclass(frozen=True)
class Hparams:
  """The attack's hyperparameters.

  Attributes:
    words: each word's embeddings, (words, k, width). `--config.new_words` names
      the run that learned them.
    insertion: where a word goes, see `engine.insertion`.
  """

  words: tuple[tuple[tuple[float, ...], ...], ...] = ()
  insertion: str = "prefix_k"

  # Nothing is optimized.
  iterations = 1

  def __post_init__(self):
    shapes = {np.shape(word) for word in self.words}
    if len(shapes) > 1 or any(len(shape) != 2 for shape in shapes):
      raise ValueError(
        f"words: their shapes are {sorted(shapes)}; allowed: one shape, "
        "(k, width)"
      )

  @property
  def blocks(self) -> int:
    """The number of images: one for each word."""
    return len(self.words)

  @property
  def num_tokens(self) -> int:
    """The number of tokens in a word."""
    return len(self.words[0]) if self.words else 0


class State(NamedTuple):
  """The lanes: key, images done, alive."""

  key: Array
  count: Int[Array, " b"]
  alive: Bool[Array, " b"]


def init(problem: Problem, key: Array, h: Hparams) -> State:
  """The lanes before their first word.

  Raises:
    ValueError: no words, or words of another width than this model's.
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
  """Moves on to the next word."""
  del problem, h
  return state._replace(count=state.count + 1), {}


def prompt(batch: Batch, state: State, h: Hparams) -> Float[Array, "b k d"]:
  """The embeddings of this image's word."""
  del batch
  which = jnp.clip(state.count - 1, 0, len(h.words) - 1)
  return jnp.asarray(h.words, jnp.float32)[which]
