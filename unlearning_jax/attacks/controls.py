"""What an attack must be compared with: luck, at the same number of images.

The published success rates count a row when any of up to 51 images shows the
concept. Random tokens, or new seeds alone, have as many tries.
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
  """What the control can be told.

  Attributes:
    kind: `random`, new tokens for every image; `seed`, the prompt unchanged
      and a new seed for every image; `none`, the prompt's own image only.
    num_tokens: tokens.
    insertion: where they go.
    blocks: images, besides the unchanged prompt's.
    iterations: an image takes one.
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
        f"iterations={self.iterations}: a control optimises nothing; allowed: 1"
      )
    # Neither has tokens of its own, nor the second any image.
    if self.kind != "random":
      object.__setattr__(self, "num_tokens", 0)
    if self.kind == "none":
      object.__setattr__(self, "blocks", 0)

  @property
  def reseed(self) -> bool:
    """Whether every image gets a new seed."""
    return self.kind == "seed"


class State(NamedTuple):
  """A lane: its key and how many images it has had."""

  key: Array
  count: Int[Array, " b"]
  alive: Bool[Array, " b"]


def init(problem: Problem, key: Array, h: Hparams) -> State:
  """No image yet."""
  del h
  return State(*lane_state.begin(key, problem.batch))


def step(
  problem: Problem, state: State, h: Hparams
) -> tuple[State, dict[str, Array]]:
  """Nothing but the count."""
  del problem, h
  return state._replace(count=state.count + 1), {}


def prompt(batch: Batch, state: State, h: Hparams) -> Int[Array, "b k"]:
  """Tokens drawn evenly from the vocabulary."""
  keys = jax.vmap(jax.random.fold_in)(state.key, state.count)
  size = len(batch.vocabulary)
  drawn = jax.vmap(lambda k: jax.random.randint(k, (h.num_tokens,), 0, size))(
    keys
  )
  return batch.vocabulary[drawn]
