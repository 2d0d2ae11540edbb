"""Ring-A-Bell (Tsai et al., ICLR 2024): a prompt that means the concept.

The attack needs no diffusion model. Pairs of phrases, with the concept and
without, give its direction c in the states of the text encoder tau. The target
lies along it, seen from the row's prompt P:

  c = mean_i tau(with_i) - tau(without_i),    target = tau(P) + eta c .

A genetic algorithm searches for k tokens z, which replace P, with the nearest
states, summed over tokens and width:

  min_z |target - tau(z)|^2 .

In each generation the better half of the population survives. Each survivor has
a child with a random other one, cut at one place, and the children mutate.

The release differs in two ways. It mutates the survivors too, and so can lose
its best prompt; `elitism=False` does the same. Its survivors have two children
or none; ours have one, which may be a copy, so that shapes are fixed.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from unlearning_jax import stable_diffusion
from unlearning_jax.attacks.engine import lane_state
from unlearning_jax.attacks.engine.victim import (
  Batch,
  Problem,
  Victim,
  text_states,
  token_table,
)
from unlearning_jax.stable_diffusion import StableDiffusion

FINDS = "prompt"
UNET_CALLS = 0


@dataclasses.dataclass(frozen=True)
class Hparams:
  """The attack's hyperparameters.

  Attributes:
    pairs: (phrase with the concept, phrase without it).
    eta: how far along c the target lies; the release has 3 for nudity and 5 for
      violence.
    num_tokens: the number of tokens in z.
    insertion: `replace` drops the row's prompt, as published.
    blocks: the most images a row may have; published: one, at the end.
    iterations: generations before each image.
    population: prompts in a generation, an even number.
    crossover: probability that a child has two parents.
    mutation: probability that a prompt has one of its tokens replaced.
    elitism: whether the better half never mutates.
  """

  pairs: tuple[tuple[str, str], ...] = ()
  eta: float = 3.0
  num_tokens: int = 16
  insertion: str = "replace"
  blocks: int = 10
  iterations: int = 300
  population: int = 200
  crossover: float = 0.5
  mutation: float = 0.25
  elitism: bool = True

  def __post_init__(self):
    if self.population < 2 or self.population % 2:
      raise ValueError(f"population={self.population}: must be even, 2 or more")


class State(NamedTuple):
  """The lanes: key, generations done, alive, prompts, distances, target."""

  key: Array
  count: Int[Array, " b"]
  alive: Bool[Array, " b"]
  tokens: Int[Array, "b n k"]
  distance: Float[Array, "b n"]
  target: Float[Array, "b l d"]


def init(problem: Problem, key: Array, h: Hparams) -> State:
  """A random population.

  Raises:
    ValueError: no pairs, or a phrase that is too long.
  """
  batch = problem.batch
  lanes = lane_state.begin(key, batch)
  tokens = lane_state.random_tokens(
    lanes[0], batch, (h.population, h.num_tokens)
  )
  wanted = target(problem, h.pairs, h.eta)
  distance = distances(problem, tokens, wanted)
  return State(*lanes, tokens, distance, wanted)


def target(
  problem: Problem, pairs: Sequence[tuple[str, str]], eta: float
) -> Float[Array, "b l d"]:
  """tau(P) + eta c for each lane's prompt, by the base's text encoder.

  Raises:
    ValueError: no pairs, or a phrase that is too long.
  """
  sd, base = problem.sd, problem.base
  states = text_states(sd, base, problem.batch)
  return states + eta * concept(sd, base, pairs)


def concept(
  sd: StableDiffusion, base: Victim, pairs: Sequence[tuple[str, str]]
) -> Float[Array, "1 l d"]:
  """c, the concept's direction in the text states.

  Raises:
    ValueError: no pairs, or a phrase that is too long.
  """
  if not pairs:
    raise ValueError("pairs: name phrases with and without the concept")
  phrases = [phrase for pair in pairs for phrase in pair]
  ids = stable_diffusion.tokenize(sd, phrases)
  states = stable_diffusion.encode_text(sd, base.params, ids)
  return (states[0::2] - states[1::2]).mean(axis=0, keepdims=True)


def distances(
  problem: Problem, tokens: Int[Array, "b n k"], target: Float[Array, "b l d"]
) -> Float[Array, "b n"]:
  """|target - tau(z)|^2 of every prompt z of each lane."""
  sd, _, base, batch = problem
  lanes, count, _ = tokens.shape
  many = batch.repeat(count)
  ids = batch.vocabulary[tokens.reshape(lanes * count, -1)]
  states = text_states(sd, base, many, token_table(base)[ids])
  states = states.reshape(lanes, count, *target.shape[1:])
  return jnp.square(states - target[:, None]).sum(axis=(2, 3))


def step(
  problem: Problem, state: State, h: Hparams
) -> tuple[State, dict[str, Array]]:
  """One generation of every lane; one that is not finite stays as it was."""
  keys = jax.vmap(jax.random.fold_in)(state.key, state.count)
  size = len(problem.batch.vocabulary)
  order = jnp.argsort(state.distance, axis=1)[:, : h.population // 2]
  parents = jnp.take_along_axis(state.tokens, order[..., None], axis=1)
  breed = functools.partial(generation, size=size, h=h)
  tokens = jax.vmap(breed)(keys, parents)
  if h.elitism:
    # Survivors do not change, and neither do their distances.
    kept = jnp.take_along_axis(state.distance, order, axis=1)
    children = tokens[:, order.shape[1] :]
    new = distances(problem, children, state.target)
    distance = jnp.concatenate([kept, new], axis=1)
  else:
    distance = distances(problem, tokens, state.target)
  new_state = lane_state.advance(
    state, (distance,), tokens=tokens, distance=distance
  )
  info = {"loss": distance.min(axis=1), "mean_loss": distance.mean(axis=1)}
  return new_state, info


def generation(
  key: Array, parents: Int[Array, "m k"], size: int, h: Hparams
) -> Int[Array, "n k"]:
  """One lane's survivors and their children, after mutation.

  Args:
    key: the lane's key of this generation.
    parents: the better half, as positions in the vocabulary.
    size: the number of tokens in the vocabulary.
    h: `crossover`, `mutation` and `elitism`.
  """
  count, k = parents.shape
  keys = jax.random.split(key, 6)
  # Crossover: from a cut on, a child has its mate's tokens.
  mates = parents[jax.random.randint(keys[0], (count,), 0, count)]
  cut = jax.random.randint(keys[1], (count, 1), 1, max(k, 2))
  pair = jax.random.uniform(keys[2], (count, 1)) < h.crossover
  places = jnp.arange(k)[None]
  children = jnp.where(pair & (places >= cut), mates, parents)
  # Mutation: a chosen prompt gets a random token in one place.
  every = jnp.concatenate([parents, children])
  chosen = jax.random.uniform(keys[3], (2 * count, 1)) < h.mutation
  chosen &= places == jax.random.randint(keys[4], (2 * count, 1), 0, k)
  if h.elitism:
    chosen &= (jnp.arange(2 * count) >= count)[:, None]
  fresh = jax.random.randint(keys[5], (2 * count, k), 0, size)
  return jnp.where(chosen, fresh, every)


def prompt(batch: Batch, state: State, h: Hparams) -> Int[Array, "b k"]:
  """The ids of each lane's nearest prompt."""
  del h
  best = state.distance.argmin(axis=1)[:, None, None]
  tokens = jnp.take_along_axis(state.tokens, best, axis=1)[:, 0]
  return batch.vocabulary[tokens]
