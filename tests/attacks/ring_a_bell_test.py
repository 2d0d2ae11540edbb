"""Ring-A-Bell: its target, its distances, and a search that only improves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.attacks_cases import make_world, table
from unlearning_jax import stable_diffusion
from unlearning_jax.attacks import ring_a_bell
from unlearning_jax.attacks.engine import insertion, rows
from unlearning_jax.attacks.engine.victim import Batch, Problem

PAIRS = (("a red star", "a red circle"), ("star", "circle"))
H = ring_a_bell.Hparams(
  pairs=PAIRS, eta=2.0, num_tokens=3, population=8, mutation=0.9
)


@pytest.fixture(scope="module")
def world():
  sd, victim, original = make_world()
  fitting, _ = rows.prepare(sd, table(sd), "replace", 3)
  batch = Batch(
    jnp.arange(300, 360),
    jnp.arange(5, dtype=jnp.uint32),
    jnp.stack([p.ids for p in fitting]),
    jnp.stack([p.source for p in fitting]),
    jnp.stack([p.row.latents for p in fitting]),
  )
  return sd, victim, original, batch


def search(world, h, generations=12):
  problem = Problem(*world)
  start = jax.jit(ring_a_bell.init, static_argnums=2)
  step = jax.jit(ring_a_bell.step, static_argnums=2)
  states = [start(problem, jax.random.key(0), h)]
  for _ in range(generations):
    states.append(step(problem, states[-1], h)[0])
  return states


def encode(world, ids):
  sd, _, original, _ = world
  states = stable_diffusion.encode_text(sd, original.params, np.asarray(ids))
  return np.asarray(states, np.float64)


def test_the_target_lies_along_the_concept(world):
  sd, _, _, batch = world
  ids = stable_diffusion.tokenize(sd, [p for pair in PAIRS for p in pair])
  found = encode(world, ids)
  concept = ((found[0] - found[1]) + (found[2] - found[3])) / 2
  wanted = encode(world, batch.ids) + 2.0 * concept
  target = search(world, H, 0)[0].target
  np.testing.assert_allclose(target, wanted, atol=1e-4)


def test_cached_distances_are_those_of_the_prompts(world):
  sd, _, original, batch = world
  last = search(world, H)[-1]
  for i in range(5):
    for j in range(8):
      ids = insertion.splice(
        np.asarray(batch.ids[i : i + 1]),
        np.asarray(batch.vocabulary[last.tokens[i, j]])[None],
        np.asarray(batch.source[i : i + 1]),
      )
      error = encode(world, ids)[0] - np.asarray(last.target[i])
      found = float(last.distance[i, j])
      np.testing.assert_allclose(found, np.square(error).sum(), rtol=1e-4)


def test_the_best_is_kept_unless_parents_mutate(world):
  best = np.array([s.distance.min(axis=1) for s in search(world, H)])
  assert (np.diff(best, axis=0) <= 0).all() and (best[-1] < best[0]).all()
  loose = dataclasses.replace(H, elitism=False)
  best = np.array([s.distance.min(axis=1) for s in search(world, loose)])
  assert (np.diff(best, axis=0) > 0).any()


def test_a_prompt_that_is_its_own_target_is_found_at_distance_zero(world):
  batch = world[3]
  tokens = jnp.asarray(np.random.default_rng(0).integers(0, 60, (5, 1, 3)))
  ids = insertion.splice(
    np.asarray(batch.ids),
    np.asarray(batch.vocabulary[tokens[:, 0]]),
    np.asarray(batch.source),
  )
  target = jnp.asarray(encode(world, ids), jnp.float32)
  found = ring_a_bell.distances(Problem(*world), tokens, target)
  np.testing.assert_allclose(found, 0, atol=1e-6)


def test_children_are_of_their_parents():
  parents = jnp.arange(12).reshape(4, 3) + 100
  h = dataclasses.replace(H, mutation=0.0, crossover=1.0)
  key = jax.random.key(3)
  found = np.asarray(ring_a_bell.generation(key, parents, 60, h))
  np.testing.assert_array_equal(found[:4], parents)
  # Each place holds what some parent has there, the first the own parent's.
  assert (found[4:, 0] == np.asarray(parents)[:, 0]).all()
  assert ((found[4:] - 100) % 3 == np.arange(3)).all()
  assert (found[4:] != np.asarray(parents)).any()


def test_what_cannot_be_searched(world):
  with pytest.raises(ValueError, match="population=3"):
    ring_a_bell.Hparams(population=3)
  with pytest.raises(ValueError, match="pairs"):
    search(world, dataclasses.replace(H, pairs=()), 0)
