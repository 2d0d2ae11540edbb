"""EraseDiff: what is undone, its second lambda, its steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unlearning_jax.erasures import erasediff
from unlearning_jax.erasures.salun import sets


def released(gradients, steps, rounds, rate=0.1):
  """The release's loop in float64: one Adam, and weights that go back.

  `sd/train_scripts/erasediff_nsfw.py` of JingWu321/EraseDiff at 14f4e984.
  """
  x, m, v, count = np.float64([1.0, -2.0]), 0.0, 0.0, 0
  draws = iter(gradients)
  seen = []
  for _ in range(len(gradients) // (2 * steps * rounds)):
    start = x.copy()
    for _ in range(rounds):
      for outer in (False, True):
        for _ in range(steps):
          g, count = next(draws) * x, count + 1
          m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
          down = m / (1 - 0.9**count)
          x = x - rate * down / (np.sqrt(v / (1 - 0.999**count)) + 1e-8)
          seen.append(x.copy())
        if not outer:
          x = start.copy()
          seen[-1] = x.copy()
  return np.stack(seen)


@pytest.mark.parametrize("steps, rounds", [(1, 1), (3, 2)])
def test_inner_steps_are_undone_but_their_moments_stay(steps, rounds):
  scale = np.random.default_rng(0).normal(size=(4 * steps * rounds, 2))
  tx = erasediff.undoing(optax.adam(0.1), steps, rounds)
  x, state = jnp.array([1.0, -2.0]), None
  state, seen = tx.init(x), []
  # Training reuses the state's memory, so that it must own all of it.
  step = jax.jit(tx.update, donate_argnums=1)
  for row in scale:
    updates, state = step(jnp.asarray(row, jnp.float32) * x, state, x)
    x = optax.apply_updates(x, updates)
    seen.append(np.asarray(x))
  wanted = released(scale, steps, rounds)
  np.testing.assert_allclose(np.stack(seen), wanted, rtol=1e-5)
  # A round begins where its epoch began.
  began = 2 * steps * rounds - 1
  np.testing.assert_allclose(seen[began + steps], seen[began], rtol=1e-6)


@pytest.mark.parametrize("angle", [0.0, 1.0, 2.0, np.pi])
def test_lambda_shrinks_where_both_gradients_agree(angle):
  first = {"a": jnp.array([3.0]), "b": jnp.array([[0.0]])}
  second = {"a": 2 * jnp.cos(angle)[None], "b": 2 * jnp.sin(angle)[None, None]}
  found = erasediff.adaptive(first, second, 0.3)
  wanted = max(0.0, 0.3 - np.cos(angle))
  np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_round_is_a_pass_of_each_level():
  images = {
    "latents": np.zeros((4, 1, 1, 1), np.float32), "pair": np.arange(4),
  }  # fmt: skip
  steps = sets.Steps(sets.Sets(images, images, {}), 2, 0, repeats=True)
  rounds = erasediff._Rounds(steps, 2)
  outer = [rounds[i]["outer"].tolist() for i in range(8)]
  assert outer == ([[False] * 2] * 2 + [[True] * 2] * 2) * 2


def test_how_many_steps_there_are():
  sizes = {"num_images": 40, "batch_size": 16, "epochs": 3}
  fixed = erasediff.Hparams(**sizes, inner_passes=4)
  assert (fixed.steps_per_pass, fixed.steps_per_epoch) == (3, 3)
  released = erasediff.Hparams(**sizes, inner_passes=4, preset="reference")
  assert released.steps_per_epoch == 24


@pytest.fixture
def levels(monkeypatch):
  """`_loss` on two weights, whose losses are known."""

  def losses(sd, params, contexts, batch, key):
    x = params["x"]
    return jnp.square(x - 1).sum(), jnp.square(x + batch["at"]).sum()

  monkeypatch.setattr(erasediff, "set_losses", losses)

  def value(h, **batch):
    loss = functools.partial(erasediff._loss, None, lambda t, _: t, h)
    x = {"x": jnp.array([0.5, -1.0])}
    frozen = {"params": {}, "contexts": {}}
    grad, found = jax.grad(loss, has_aux=True)(
      x, frozen, {"at": jnp.array([2.0, 0.0]), **batch}, None
    )
    return np.asarray(grad["x"], np.float64), found

  return value


def test_which_level_a_step_trains(levels):
  gone, held = np.array([-1.0, -4.0]), np.array([5.0, -2.0])
  h = erasediff.Hparams(forget_weight=0.5)
  np.testing.assert_allclose(levels(h)[0], held + 0.5 * gone)
  for outer, wanted in ((True, held + 0.5 * gone), (False, gone)):
    found, _ = levels(h, outer=jnp.full(2, outer))
    np.testing.assert_allclose(found, wanted)
  cosine = gone @ held / np.linalg.norm(gone) / np.linalg.norm(held)
  h = erasediff.Hparams(penalty="adaptive", eta=0.7)
  found, metrics = levels(h)
  np.testing.assert_allclose(found, held + (0.7 - cosine) * gone, rtol=1e-5)
  np.testing.assert_allclose(metrics["lambda"], 0.7 - cosine, rtol=1e-5)


@pytest.mark.parametrize(
  "options, words",
  [
    ({"preset": "referenc"}, "did you mean 'reference'"),
    ({"train": "cross"}, "train='cross' is not known; allowed: u, x, full"),
    ({"penalty": "adaptve"}, "did you mean 'adaptive'"),
    ({"eta": -1.0}, "eta=-1.0; allowed: finite numbers from 0"),
    ({"inner_passes": 0}, "inner_passes=0; allowed: whole numbers from 1"),
    ({"learning_rate": -1e-5}, "learning_rate=-1e-05; allowed: finite.*above"),
  ],
)
def test_settings_that_cannot_be(options, words):
  with pytest.raises(ValueError, match=words):
    erasediff.Hparams(**options)
