"""Network probes: their steps against float64, on numbers and no network."""

import jax.numpy as jnp
import numpy as np
import pytest

from unlearning_jax import attacks
from unlearning_jax.attacks import noise_probe
from unlearning_jax.attacks.engine import denoising
from unlearning_jax.samplers import make_sampler
from unlearning_jax.schedules import Schedule

SCHEDULE = Schedule.from_config({
  "_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012,
  "beta_schedule": "scaled_linear", "set_alpha_to_one": False,
  "steps_offset": 1, "clip_sample": False,
})  # fmt: skip


def numbers(count, shape=(2, 2, 3, 4)):
  rng = np.random.default_rng(count)
  return [rng.normal(size=shape) for _ in range(count)]


class Bundle:
  schedule = SCHEDULE


def test_a_step_without_added_noise_is_the_samplers():
  x, eps = (jnp.asarray(a, jnp.float32) for a in numbers(2))
  plan, sampler = denoising.plan(Bundle, 7), make_sampler(SCHEDULE, 7)
  for i in range(7):
    t, level, after = plan.at(jnp.full(2, i))
    found = denoising.step(x, eps, level, after)
    wanted = sampler.latents(sampler.step(sampler.init(x), i, eps))
    assert t.tolist() == [sampler.timesteps[i]] * 2
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)
    still = noise_probe.noisy_step(x, eps, 0 * x, level, after, 0 * level)
    np.testing.assert_allclose(still, found, rtol=1e-5, atol=1e-5)


def test_noise_is_added_as_published():
  """The release's rule in float64, also where the root is of a negative."""
  x, eps, xi = numbers(3)
  plan, signs = denoising.plan(Bundle, 50), set()
  for i, eta, scale in ((0, 1.0, 1.0), (25, 1.51, 1.03), (48, 1.85, 1.04)):
    a, b = plan.level[i], plan.next_level[i]
    variance = (1 - b) / (1 - a) * (1 - a / b)
    x0 = (x - np.sqrt(1 - a) * eps) / np.sqrt(a)
    inside = 1 - b - eta**2 * variance
    signs.add(inside > 0)
    wanted = np.sqrt(b) * x0 + np.sqrt(abs(inside)) * eps
    wanted += eta * np.sqrt(variance) * scale * xi
    _, level, after = plan.at(jnp.full(2, i))
    found = noise_probe.noisy_step(
      jnp.asarray(x, jnp.float32), jnp.asarray(eps, jnp.float32),
      jnp.asarray(scale * xi, jnp.float32), level, after,
      jnp.full((2, 1, 1, 1), eta),
    )  # fmt: skip
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)
  assert signs == {True, False}


def test_each_image_has_the_next_factor():
  h = noise_probe.Hparams(etas=(1.0, 1.5), scales=(1.0, 1.1, 1.2))
  assert h.blocks == 6
  eta, scale = noise_probe.factors(jnp.arange(6), h)
  assert eta.ravel().tolist() == [1.0] * 3 + [1.5] * 3
  np.testing.assert_allclose(scale.ravel(), [1.0, 1.1, 1.2] * 2)


@pytest.mark.parametrize(
  "hparams, words",
  [
    ({"etas": ()}, "etas=.*one finite number"),
    ({"scales": (1.0, -1.0)}, "scales=.*none below 0"),
    ({"steps": 0}, "steps=0: must be at least 1"),
    ({"guidance_scale": float("nan")}, "guidance_scale=nan"),
  ],
)
def test_numbers_that_a_probe_cannot_have(hparams, words):
  with pytest.raises(ValueError, match=words):
    attacks.bind("noise_probe", hparams)
