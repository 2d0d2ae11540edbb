"""Controls for every attack: random tokens or seeds, with as many images.

The published success rates count a row if any of up to 51 images shows the
concept. A control shows how often luck does that in as many tries.
"""

import dataclasses
from typing import NamedTuple

import jax
from jaxtyping import Array, Bool, Int

from unlearning_jax.attacks.engine import lane_state
from unlearning_jax.attacks.engine.victim import Batch, Problem
from unlearning_jax.concepts import check_choice

FINDS = "prompt"
UNET_CALLS = 0
KINDS = ("random", "seed", "none")


@dataclasses.dataclass(frozen=True)
class Hparams:
  """The control's hyperparameters.

  Attributes:
    kind: `random` draws new tokens for every image; `seed` keeps the prompt and
      draws a new seed for every image; `none` has only the prompt's own image.
    num_tokens: the number of random tokens.
    insertion: where they go, see `engine.insertion`.
    blocks: the most images a row may have, besides that of its own prompt.
    iterations: always 1.
  """

  kind: str = "random"
  num_tokens: int = 5
  insertion: str = "prefix_k"
  blocks: int = 50
  iterations: int = 1

  def __post_init__(self):
    check_choice("kind", self.kind, KINDS)
    if self.iterations != 1:
      raise ValueError(
        f"iterations={self.iterations}: a control optimizes nothing; allowed: 1"
      )
    # `seed` and `none` insert no tokens, and `none` draws no more images.
    if self.kind != "random":
      object.__setattr__(self, "num_tokens", 0)
    if self.kind == "none":
      object.__setattr__(self, "blocks", 0)

  @property
  def reseed(self) -> bool:
    """Whether every image gets a new seed."""
    return self.kind == "seed"


class State(NamedTuple):
  """The lanes: key, images done, alive."""

  key: Array
  count: Int[Array, " b"]
  alive: Bool[Array, " b"]


def init(problem: Problem, key: Array, h: Hparams) -> State:
  """The lanes before their first image."""
  del h
  return State(*lane_state.begin(key, problem.batch))


def step(
  problem: Problem, state: State, h: Hparams
) -> tuple[State, dict[str, Array]]:
  """Counts the iteration."""
  del problem, h
  return state._replace(count=state.count + 1), {}


def prompt(batch: Batch, state: State, h: Hparams) -> Int[Array, "b k"]:
  """Random ids of the vocabulary, new for every image."""
  keys = jax.vmap(jax.random.fold_in)(state.key, state.count)
  size = len(batch.vocabulary)
  drawn = jax.vmap(lambda k: jax.random.randint(k, (h.num_tokens,), 0, size))(
    keys
  )
  return batch.vocabulary[drawn]
