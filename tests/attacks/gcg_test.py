"""GCG's own promises: candidates, their losses, and a prompt never worse."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.attacks_cases import make_world, table
from unlearning_jax import attacks, stable_diffusion
from unlearning_jax.attacks import gcg, ring_a_bell, unlearn_diff_atk
from unlearning_jax.attacks.engine import losses, rows
from unlearning_jax.attacks.engine.victim import (
  Batch,
  Problem,
  text_states,
  token_table,
)

pytestmark = pytest.mark.usefixtures("quickest_compiler")
PAIRS = (("a red star", "a red circle"), ("star", "circle"))
H = gcg.Hparams(
  blocks=2,
  iterations=4,
  num_tokens=3,
  top=5,
  candidates=7,
  pairs=PAIRS,
  eta=2.0,
)


@pytest.fixture(scope="module")
def world():
  return make_world(small=True)


def test_a_candidate_changes_one_slot_to_a_promising_token():
  gradient = np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32)
  tokens = jnp.array([39, 38, 37])
  slots = set()
  for seed in range(20):
    found = gcg.substitutes(jax.random.key(seed), tokens, gradient, H)
    assert found.shape == (7, 3)
    for row in np.asarray(found):
      changed = np.flatnonzero(row != np.asarray(tokens))
      assert len(changed) <= 1
      for slot in changed:
        assert row[slot] in np.argsort(gradient[slot])[:5]
        slots.add(int(slot))
  assert slots == {0, 1, 2}


@pytest.fixture(scope="module")
def batch(world):
  sd = world[0]
  fitting, _ = rows.prepare(sd, table(sd), "prefix_k", 3)
  return Batch(
    jnp.arange(300, 340),
    jnp.arange(5, dtype=jnp.uint32),
    jnp.stack([p.ids for p in fitting]),
    jnp.stack([p.source for p in fitting]),
    jnp.stack([p.row.latents for p in fitting]),
  )


def draw(sd, draws=1):
  key, count = jax.random.split(jax.random.key(1), 5), jnp.zeros(5, jnp.int32)
  return losses.draw(sd, key, count, dataclasses.replace(H, draws=draws))


@pytest.fixture(scope="module", params=gcg.LOSSES)
def of(request, world, batch):
  """One of the losses, of embeddings and of draws alone."""
  h = dataclasses.replace(H, loss=request.param)
  return jax.jit(
    lambda embeds, drawn: gcg.loss(Problem(*world, batch), embeds, drawn, h)
  )


def test_the_loss_of_a_candidate_is_the_prompt_s_own(world, batch, of):
  table, drawn = token_table(world[1]), draw(world[0])
  tried = jnp.asarray(np.random.default_rng(0).integers(0, 40, (5, 2, 3)))
  found = gcg.evaluate(table, batch, tried, of, drawn)
  for i in range(2):
    loss, _ = gcg.token_gradient(table, batch, tried[:, i], of, drawn)
    np.testing.assert_allclose(found[:, i], loss, rtol=1e-5, atol=1e-6)


def test_the_token_gradient_is_what_a_small_change_does(world, batch, of):
  """G = E dL/de against differences of the loss along e."""
  table, drawn = token_table(world[1]), draw(world[0])
  tokens = jnp.asarray(np.random.default_rng(0).integers(0, 40, (5, 3)))
  _, gradient = gcg.token_gradient(table, batch, tokens, of, drawn)
  embeds = table[batch.vocabulary[tokens]]
  for slot, token in ((0, 4), (2, 31)):
    along = table[batch.vocabulary[token]]
    step = 0.02 * jnp.linalg.norm(embeds[:, slot]) / jnp.linalg.norm(along)
    up = of(embeds.at[:, slot].add(step * along), drawn)
    down = of(embeds.at[:, slot].add(-step * along), drawn)
    np.testing.assert_allclose(
      (up - down) / (2 * step),
      gradient[:, slot, token],
      rtol=0.05,
      atol=0.03 * float(jnp.abs(gradient).max()),
    )


def test_draws_take_turns(world, batch):
  """Losses and gradients of three draws are those of all three at once."""
  drawn = draw(world[0], 3)
  table = token_table(world[1])
  tokens = jnp.asarray(np.random.default_rng(0).integers(0, 40, (5, 3)))
  h = dataclasses.replace(H, loss="match")

  def of(embeds, drawn):
    return gcg.loss(Problem(*world, batch), embeds, drawn, h)

  @jax.jit
  def at_once(embeds):
    lanes, back = jax.vjp(lambda e: of(e, drawn), embeds)
    return lanes, back(jnp.ones(5))[0]

  wanted, slope = at_once(table[batch.vocabulary[tokens]])
  turns = jax.jit(gcg.token_gradient, static_argnums=3)
  found, gradient = turns(table, batch, tokens, of, drawn)
  np.testing.assert_allclose(found, wanted, rtol=1e-5)
  every = slope @ table[batch.vocabulary].T
  np.testing.assert_allclose(
    gradient, every, atol=1e-5 * float(jnp.abs(every).max())
  )
  evaluate = jax.jit(gcg.evaluate, static_argnums=3)
  alone = evaluate(table, batch, tokens[:, None], of, drawn)
  np.testing.assert_allclose(alone[:, 0], wanted, rtol=1e-5)
  several = dataclasses.replace(H, draws=3, loss="feature")
  with pytest.raises(ValueError, match="draws=3: loss='feature'"):
    gcg.init(Problem(*world, batch), jax.random.key(0), several)


def test_the_diffusion_losses_are_the_other_attacks(world, batch):
  sd, victim, original = world
  tokens = jnp.asarray(np.random.default_rng(0).integers(0, 40, (5, 3)))
  table = token_table(victim)
  embeds = table[batch.vocabulary[tokens]]
  drawn = draw(sd)
  problem = Problem(sd, victim, original, batch)
  of = jax.jit(gcg.loss, static_argnums=3)
  uda, _ = jax.jit(unlearn_diff_atk.token_gradient)(problem, tokens, drawn)
  np.testing.assert_allclose(of(problem, embeds, drawn, H), uda, rtol=1e-5)
  wanted = jax.jit(losses.of_embeddings, static_argnums=3)(
    problem, embeds, drawn, "l2", text_states(sd, original, batch)
  )
  match = of(problem, embeds, drawn, dataclasses.replace(H, loss="match"))
  np.testing.assert_allclose(match, wanted, rtol=1e-5)


def test_the_fitness_is_ring_a_bell_s(world, batch):
  sd, victim, original = world
  h = dataclasses.replace(H, loss="fitness")
  problem = Problem(sd, victim, original, batch)
  state = gcg.init(problem, jax.random.key(0), h)
  target = ring_a_bell.target(problem, PAIRS, 2.0)
  step = jax.jit(gcg.step, static_argnums=2)
  for _ in range(2):
    wanted = ring_a_bell.distances(problem, state.tokens[:, None], target)
    state, info = step(problem, state, h)
    np.testing.assert_allclose(info["loss"], wanted[:, 0], rtol=1e-5)
  for changes, words in (
    ({"pairs": ()}, "pairs: name phrases"),
    ({"draws": 2}, "draws=2: loss='fitness' has no timesteps"),
  ):
    other = dataclasses.replace(h, **changes)
    with pytest.raises(ValueError, match=words):
      gcg.init(problem, jax.random.key(0), other)
  assert attacks.bind("gcg", {"loss": "fitness"}).unet_calls(victim) == 0


def test_a_model_given_its_own_prompt_leaves_nothing_to_match(world):
  """P4D's loss is 0 where victim and prompt are the original's own."""
  sd, victim, original = world
  words = sd.tokenizer("a red star")["input_ids"][1:-1]
  (prepared,), _ = rows.prepare(
    sd, table(sd, ["a red star"]), "replace", len(words)
  )
  batch = Batch(
    jnp.arange(2), jnp.zeros(1, jnp.uint32), prepared.ids[None],
    prepared.source[None], prepared.row.latents[None],
  )  # fmt: skip
  drawn = jax.tree.map(lambda x: x[:1], draw(sd))
  of = jax.jit(losses.of_embeddings, static_argnums=3)

  def match(who, ids):
    embeds = token_table(who)[jnp.asarray(ids)][None]
    target = text_states(sd, original, batch)
    problem = Problem(sd, who, original, batch)
    return of(problem, embeds, drawn, "l2", target)

  np.testing.assert_allclose(match(original, words), 0, atol=1e-12)
  assert match(victim, words) > 1e-3
  assert match(original, words[::-1]) > 1e-8


def test_the_feature_is_the_state_at_the_end_of_the_text(world):
  """Of the prompt itself, on the model itself, nothing is missing."""
  sd, _, original = world
  h = dataclasses.replace(H, loss="feature", num_tokens=1, insertion="replace")
  (prepared,), _ = rows.prepare(sd, table(sd, ["star"]), "replace", 1)
  at = (token_table(original), prepared.ids[1])
  batch = Batch(
    jnp.arange(2), jnp.zeros(1, jnp.uint32), prepared.ids[None],
    prepared.source[None], prepared.row.latents[None],
  )  # fmt: skip
  problem = Problem(sd, original, original, batch)
  same = gcg.loss(problem, at[0][at[1]][None, None], None, h)
  np.testing.assert_allclose(same, 0, atol=1e-6)
  other = gcg.loss(problem, at[0][at[1] + 1][None, None], None, h)
  states = stable_diffusion.encode_prompts(
    sd, original.params,
    ["star", sd.tokenizer.decode([int(at[1]) + 1])],
  )[:, 2]  # fmt: skip
  cosine = jnp.vdot(*states) / jnp.prod(jnp.linalg.norm(states, axis=1))
  np.testing.assert_allclose(other, 1 - cosine, atol=1e-5)


@pytest.mark.slow
def test_a_prompt_is_never_replaced_by_a_worse_one(world, batch):
  sd, victim, original = world
  state = gcg.init(Problem(*world, batch), jax.random.key(0), H)
  step = jax.jit(gcg.step, static_argnums=2)
  for _ in range(4):
    old = state
    state, info = step(Problem(*world, batch), state, H)
    assert (info["best_loss"] <= info["loss"]).all()
    same = np.asarray(state.tokens == old.tokens).all(axis=1)
    np.testing.assert_array_equal(same, np.asarray(info["replaced"]) == 0)
  with pytest.raises(ValueError, match="candidates=0"):
    gcg.Hparams(candidates=0)
