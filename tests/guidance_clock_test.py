"""What the warmup of Safe Latent Diffusion counts."""

import jax.numpy as jnp
import pytest

from unlearning_jax import guidance

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
