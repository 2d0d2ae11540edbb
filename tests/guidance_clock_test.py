"""What the warmup of Safe Latent Diffusion counts."""

import dataclasses
import hashlib
import types

import jax.numpy as jnp
import pytest

from unlearning_jax import guidance
from unlearning_jax.attacks.engine import losses
from unlearning_jax.experiments import common

SCALE = 7.5


def acts(clock, step, t):
  """Whether gamma changes the prediction at a step and its timestep."""
  safe = guidance.Safe("a star", 15, 3.0, 0.1, 0.0, 0.4, clock)
  empty_prompt_concept = jnp.arange(3.0).reshape(1, 3, 1, 1, 1)
  out, momentum = guidance.combine(
    empty_prompt_concept, SCALE, safe, jnp.zeros((1,) * 4), step, t
  )
  # nu grows from the first step, whatever the clock.
  assert momentum.squeeze() > 0
  return float(out.squeeze()) != SCALE


@pytest.mark.parametrize(
  "step, t, steps, legacy",
  [(0, 981, False, True), (14, 15, False, True), (49, 1, True, False)],
)
def test_the_legacy_clock_reads_timesteps(step, t, steps, legacy):
  assert acts("steps", step, t) == steps
  assert acts("legacy", step, t) == legacy


def test_a_loss_reads_the_legacy_clock(monkeypatch):
  """Two lanes, of which one's timestep is below the warmup."""
  safe = guidance.Safe("a star", 500, 3.0, 0.1, 0.0, 0.4, "legacy")
  states = (jnp.full((1, 1, 1, 1), value) for value in (0.0, 2.0))
  guide = types.SimpleNamespace(
    negative=next(states), concept=next(states), safe=safe, scale=SCALE
  )
  problem = types.SimpleNamespace(
    sd=None, victim=types.SimpleNamespace(guide=guide)
  )
  monkeypatch.setattr(
    losses, "_unet", lambda sd, who, context, noisy, t: context + 0 * noisy
  )
  found, _ = losses._predict(
    problem, jnp.ones((2, 1, 1, 1)), jnp.zeros((2, 1, 1, 1)),
    jnp.array([499, 500]),
  )  # fmt: skip
  assert (found.squeeze() == SCALE).tolist() == [True, False]


def test_the_published_clock_keeps_the_hash_of_older_records():
  made = guidance.Guidance(safe=guidance.preset("medium", "a star"))
  before = (
    "Guidance(negative_prompt='', safe=Safe(concept='a star', warmup=10, "
    "scale=1000.0, threshold=0.01, momentum=0.3, beta=0.4), method='', "
    "concepts=())"
  )
  assert common.made_hash(made) == hashlib.sha256(before.encode()).hexdigest()
  assert made.safe
  legacy = dataclasses.replace(made.safe, clock="legacy")
  other = dataclasses.replace(made, safe=legacy)
  assert common.made_hash(other) != common.made_hash(made)
