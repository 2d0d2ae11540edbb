"""GCG's own promises: candidates, their losses, and a prompt never worse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attacks_cases import make_world, table

from unlearning_jax.attacks import gcg, unlearn_diff_atk
from unlearning_jax.attacks.shared import losses, rows
from unlearning_jax.attacks.shared.victim import (
  Batch,
  text_states,
  token_table,
)

H = gcg.Hparams(blocks=2, iterations=4, k=3, top=5, candidates=7)


@pytest.fixture(scope="module")
def world():
  return make_world()


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


def test_the_loss_of_a_candidate_is_the_prompt_s_own(world, batch):
  sd, victim, original = world
  tried = np.random.default_rng(0).integers(0, 40, (5, 2, 3))
  key, count = jax.random.split(jax.random.key(1), 5), jnp.zeros(5, jnp.int32)
  drawn = losses.draw(sd, key, count, H)
  found = jax.jit(gcg.evaluate, static_argnums=0)(
    sd, victim, original, batch, jnp.asarray(tried), drawn
  )
  for i in range(2):
    loss, _ = jax.jit(unlearn_diff_atk.token_gradient, static_argnums=0)(
      sd, victim, original, batch, jnp.asarray(tried[:, i]), drawn
    )
    np.testing.assert_allclose(found[:, i], loss, rtol=1e-5)


def test_the_token_gradient_is_what_a_small_change_does(world, batch):
  """G = E dL/de against differences of the loss along e."""
  sd, victim, original = world
  tokens = jnp.asarray(np.random.default_rng(0).integers(0, 40, (5, 3)))
  key, count = jax.random.split(jax.random.key(1), 5), jnp.zeros(5, jnp.int32)
  drawn = losses.draw(sd, key, count, H)
  _, gradient = jax.jit(unlearn_diff_atk.token_gradient, static_argnums=0)(
    sd, victim, original, batch, tokens, drawn
  )
  every = token_table(victim)
  embeds = every[batch.vocabulary[tokens]]

  @jax.jit
  def loss(victim, embeds):
    context = text_states(sd, victim, batch, embeds)
    return losses.residuals(
      sd, victim, original, context, None, batch.latents, drawn
    )

  for slot, token in ((0, 4), (2, 31)):
    along = every[batch.vocabulary[token]]
    step = 0.02 * jnp.linalg.norm(embeds[:, slot]) / jnp.linalg.norm(along)
    up = loss(victim, embeds.at[:, slot].add(step * along))
    down = loss(victim, embeds.at[:, slot].add(-step * along))
    np.testing.assert_allclose(
      (up - down) / (2 * step),
      gradient[:, slot, token],
      rtol=0.05,
      atol=0.03 * float(jnp.abs(gradient).max()),
    )


@pytest.mark.slow
def test_a_prompt_is_never_replaced_by_a_worse_one(world, batch):
  sd, victim, original = world
  state = gcg.init(sd, victim, original, batch, jax.random.key(0), H)
  step = jax.jit(gcg.step, static_argnums=(0, 5))
  for _ in range(4):
    old = state
    state, info = step(sd, victim, original, batch, state, H)
    assert (info["best_loss"] <= info["loss"]).all()
    same = np.asarray(state.tokens == old.tokens).all(axis=1)
    np.testing.assert_array_equal(same, np.asarray(info["replaced"]) == 0)
  with pytest.raises(ValueError, match="candidates=0"):
    gcg.Hparams(candidates=0)
