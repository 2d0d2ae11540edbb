"""Network probes: their steps against float64, on numbers and no network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unlearning_jax import attacks
from unlearning_jax.attacks import (
  completion_probe,
  inversion_probe,
  noise_probe,
)
from unlearning_jax.attacks.engine import denoising
from unlearning_jax.attacks.engine.victim import Batch, Problem, Victim
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
  latent_shape = (2, 2, 3)


def linear(monkeypatch, latents):
  """A problem whose networks predict eps = M z, in float64."""
  size = int(np.prod(Bundle.latent_shape))
  rng = np.random.default_rng(7)
  maps = [0.1 * rng.normal(size=(size, size)) for _ in range(2)]

  def predict(sd, who, x, t, contexts):
    out = (x.reshape(len(x), -1) @ jnp.asarray(who.params).T).reshape(x.shape)
    return jnp.repeat(out[:, None], contexts.shape[1], axis=1)

  def contexts(sd, who, batch):
    return jnp.zeros((len(batch.number), 2, 1, 1))

  monkeypatch.setattr(denoising, "predict", predict)
  monkeypatch.setattr(denoising, "contexts", contexts)
  number = jnp.arange(len(latents), dtype=jnp.uint32)
  batch = Batch(jnp.arange(3), number, number, number, jnp.asarray(latents))
  return Problem(Bundle, Victim(maps[0]), Victim(maps[1]), batch), maps


def run(module, problem, h, count):
  """The latents after each of `count` iterations, and the last state."""
  state, seen = module.init(problem, jax.random.key(1), h), []
  for _ in range(count):
    state, _ = module.step(problem, state, h)
    seen.append(np.asarray(state.latents))
  return seen, state


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


def test_the_base_begins_and_the_victim_ends(monkeypatch):
  with jax.enable_x64(True):
    problem, (ours, theirs) = linear(monkeypatch, np.zeros((2, 2, 2, 3)))
    h = completion_probe.Hparams(base_steps=(2, 1), steps=4)
    state = completion_probe.init(problem, jax.random.key(1), h)
    noise = jax.vmap(lambda k: jax.random.normal(k, Bundle.latent_shape))(
      state.key
    )
    seen, _ = run(completion_probe, problem, h, h.blocks * h.iterations)
    times, levels, after = denoising.plan(Bundle, 4)
    for image, k in enumerate(h.base_steps):
      x = np.asarray(noise).reshape(2, -1)
      for i, (a, b) in enumerate(zip(levels, after, strict=True)):
        eps = x @ (theirs if i < k else ours).T
        x0 = (x - np.sqrt(1 - a) * eps) / np.sqrt(a)
        x = np.sqrt(b) * x0 + np.sqrt(1 - b) * eps
      found = seen[(image + 1) * h.iterations - 1].reshape(2, -1)
      np.testing.assert_allclose(found, x, rtol=1e-9)


def test_a_linear_network_is_inverted_and_draws_the_image_again(monkeypatch):
  """z = (I - C2 M)^-1 C1 z' at every step, and back to z_0."""
  (clean,) = numbers(1, (2, 2, 2, 3))
  with jax.enable_x64(True):
    problem, (ours, _) = linear(monkeypatch, clean)
    h = inversion_probe.Hparams(steps=4, updates=60, solver="fixed_point")
    seen, _ = run(inversion_probe, problem, h, h.iterations)
    z, eye = clean.reshape(2, -1), np.eye(ours.shape[0])
    _, levels, after = denoising.plan(Bundle, 4)
    for rung, i in enumerate((3, 2, 1, 0)):
      a, b = levels[i], after[i]
      first = np.sqrt(a / b)
      second = np.sqrt(1 - a) - first * np.sqrt(1 - b)
      z = np.linalg.solve(eye - second * ours, first * z.T).T
      found = seen[(rung + 1) * (h.updates + 1) - 1].reshape(2, -1)
      np.testing.assert_allclose(found, z, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(seen[-1], clean, rtol=1e-6, atol=1e-9)


def test_the_released_solver_hardly_moves(monkeypatch):
  """25 steps of 1e-3 from where DDIM begins, whatever the residual is."""
  (clean,) = numbers(1, (2, 2, 2, 3))
  with jax.enable_x64(True):
    problem, (ours, _) = linear(monkeypatch, clean)
    h = inversion_probe.Hparams(steps=4)
    # On the second rung, where C2 is not small.
    seen, _ = run(inversion_probe, problem, h, 52)
    far = abs(seen[51] - seen[26]).max()
    assert 0.9 * 0.025 < far < 1.1 * 0.025
    # At the solution it does not move at all.
    still = inversion_probe.Hparams(steps=4, weight_decay=0.0)
    _, state = run(inversion_probe, problem, still, 1)
    _, levels, after = denoising.plan(Bundle, 4)
    first = np.sqrt(levels[3] / after[3])
    second = np.sqrt(1 - levels[3]) - first * np.sqrt(1 - after[3])
    solved = np.linalg.solve(
      np.eye(len(ours)) - second * ours, first * clean.reshape(2, -1).T
    ).T.reshape(clean.shape)
    state = state._replace(latents=jnp.asarray(solved))
    new, _ = inversion_probe.step(problem, state, still)
    np.testing.assert_allclose(new.latents, solved, atol=1e-9)


def test_the_energy_of_forward_noise_is_standard():
  (clean,) = numbers(1, (1, 4, 4, 8))
  rng, level = np.random.default_rng(0), 0.3
  noise = rng.normal(size=(20_000, 4, 4, 8))
  z = np.sqrt(level) * clean + np.sqrt(1 - level) * noise
  r = inversion_probe.score(
    jnp.asarray(z, jnp.float32),
    jnp.asarray(np.broadcast_to(clean, z.shape), jnp.float32),
    jnp.full((len(z), 1, 1, 1), level),
  )
  assert abs(r.mean()) < 0.03 and abs(r.var() - 1) < 0.05


def test_the_penalty_acts_on_low_energy_alone():
  (clean,) = numbers(1, (2, 4, 4, 8))
  level, h = jnp.full((2, 1, 1, 1), 0.01), inversion_probe.Hparams(margin=2.0)
  clean = jnp.asarray(clean, jnp.float32)
  z = clean * jnp.asarray([0.1, 1.5])[:, None, None, None]

  def penalty(z):
    r = inversion_probe.score(z, clean, level)
    return jnp.square(jax.nn.relu(-r - 2.0)).sum()

  found = inversion_probe.penalty_gradient(z, clean, level, h)
  np.testing.assert_allclose(found, jax.grad(penalty)(z), rtol=1e-4)
  assert abs(found[0]).max() > 0 and (found[1] == 0).all()


def test_forward_noise_takes_the_place_of_the_first_steps(monkeypatch):
  (clean,) = numbers(1, (2, 2, 2, 3))
  problem, _ = linear(monkeypatch, clean.astype(np.float32))
  h = inversion_probe.Hparams(steps=10, updates=1, start=0.2)
  assert (h.skipped, h.climbing, h.iterations) == (2, 16, 26)
  state = inversion_probe.init(problem, jax.random.key(0), h)
  _, _, after = denoising.plan(Bundle, 10)
  rest = np.asarray(state.latents) - np.sqrt(after[7]) * clean
  assert 0.4 < rest.std() / np.sqrt(1 - after[7]) < 1.6


@pytest.mark.parametrize(
  "hparams, words",
  [
    ({"solver": "newton"}, "solver='newton'"),
    ({"start": 1.0}, "start=1.0: allowed"),
    ({"energy": -1.0}, "energy=-1.0: must be finite"),
    ({"energy": 1.0, "solver": "fixed_point"}, "needs a gradient"),
    ({"updates": -1}, "updates=-1"),
  ],
)
def test_numbers_that_an_inversion_cannot_have(hparams, words):
  with pytest.raises(ValueError, match=words):
    attacks.bind("inversion_probe", hparams)


@pytest.mark.parametrize("steps", [(), (50,), (-1,)])
def test_a_base_that_takes_every_step_leaves_nothing_to_complete(steps):
  with pytest.raises(ValueError, match=r"base_steps=.*0 to steps - 1 = 49"):
    attacks.bind("completion_probe", {"base_steps": steps})


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
