"""ResAlign: its lanes, its whole step, its settings."""

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.erasures.resalign_gradients_test import Pulled, doubles, one
from unlearning_jax.erasures import resalign
from unlearning_jax.erasures.resalign import (
  images,
  lanes,
  options,
  packs,
  step,
)
from unlearning_jax.erasures.salun import sets

__all__ = ["doubles"]


class Quadratics(Pulled):
  """`Losses` of two weights in the plane, whose gradients are known."""

  def concept(self, u, keys, rows):
    return -jnp.sum(u["x"] ** 2)

  def remain(self, u, key):
    return jnp.sum(u["x"] * jnp.array([3.0, -2.0]))

  def tuning(self, u, key, of, rows):
    return 0.5 * (1.0 + of) * jnp.sum((u["x"] - 1) ** 2)


def lane_gradient(losses, h, theta, lane, direct, keys):
  """A lane from its beginning to its gradient, and the loss that it ends at."""

  pack, *_ = packs.packs(h, keys[0], keys)

  def tune(theta):
    return packs.tuned(losses, h, pack, theta, lane, keys[0])

  w, back = jax.vjp(tune, theta)
  value, g = jax.value_and_grad(losses.concept)(w, keys, 1)
  g = jax.tree.map(lambda leaf: h.resilience * leaf, g)
  if h.preset == "fixed" and h.hypergrad == "unrolled":
    (g,) = back(g)
  product = packs.curved(losses, h, pack, lane, w)
  total, found = packs.through(h, lane, g, direct, product, keys[1])
  return total, found | {"tuned": value}


def test_a_lane_whose_series_grows_takes_its_first_term():
  h = resalign.Hparams(lanes=("sgd/0.5/8/0",))
  theta, key = {"x": jnp.array([0.5, -1.0])}, jax.random.key(0)
  lane = one(lanes.parse(h.lanes), 0)
  found, metrics = lane_gradient(
    Quadratics(), h, theta, lane, {"x": jnp.zeros(2)}, (key, key)
  )
  w = 1 + 0.5**8 * (theta["x"] - 1)
  np.testing.assert_allclose(found["x"], -0.8 * 2 * w, rtol=1e-10)
  assert (metrics["growth"], metrics["dropped"]) == (4, 1)


@pytest.mark.parametrize("how", options.HYPERGRADS)
def test_a_lanes_gradient(how):
  names = ("sgd/0.015625/8/0", "sgd/0.03125/3/1")
  h = resalign.Hparams(lanes=names, hypergrad=how, terms=30, resilience=0.75)
  theta, direct = {"x": jnp.array([0.5, -1.0])}, {"x": jnp.array([0.1, 0.2])}
  key = jax.random.key(0)
  for i, (rate, steps, bent) in enumerate([(2**-6, 8, 1), (2**-5, 3, 2)]):
    lane = one(lanes.parse(names), i)
    found, metrics = lane_gradient(
      Quadratics(), h, theta, lane, direct, (key, key)
    )
    shrunk = (1 - rate * bent) ** steps
    w = 1 + shrunk * (theta["x"] - 1)
    factor = {
      "first_order": 1,
      "neumann": 1 / (1 + steps * rate * bent),
      "unrolled": shrunk,
    }[how]
    wanted = direct["x"] - 0.75 * 2 * w * factor
    np.testing.assert_allclose(found["x"], wanted, rtol=1e-10)
    np.testing.assert_allclose(metrics["tuned"], -np.sum(w**2), rtol=1e-10)


def test_lanes_together_are_lanes_alone_in_any_order():
  names = ("sgd/0.015625/8/0", "adam/0.03125/3/1", "sgd/0.5/1/0")
  theta, direct = {"x": jnp.array([0.5, -1.0])}, {"x": jnp.array([0.1, 0.2])}
  key = jax.random.key(0)

  def gradients(names):
    h = resalign.Hparams(lanes=names, hypergrad="unrolled")
    every = jax.tree.map(jnp.asarray, lanes.parse(names))
    return jax.vmap(
      lambda lane: lane_gradient(
        Quadratics(), h, theta, lane, direct, (key, key)
      )[0]["x"]
    )(every)

  together = gradients(names)
  for i, name in enumerate(names):
    np.testing.assert_allclose(gradients((name,))[0], together[i], rtol=1e-12)
  np.testing.assert_allclose(gradients(names[::-1])[::-1], together, rtol=1e-12)


def test_what_remains_weighs_more_at_the_end():
  h = resalign.Hparams(num_steps=100)
  found = [float(options.remain_weight(h, step)) for step in range(100)]
  assert found[:48] == [1.6] * 48
  np.testing.assert_allclose(found[74], 1.8, atol=1e-6)
  np.testing.assert_allclose(found[99], 1.6 + 0.4 / (1 + np.exp(-5)), rtol=1e-6)


@pytest.mark.parametrize(
  "options, words",
  [
    ({"preset": "paper"}, "preset='paper'.*paper_code"),
    ({"hypergrad": "neuman"}, "did you mean 'neumann'"),
    ({"lanes": ()}, "lanes=.*one or more"),
    ({"lanes": ("sgd/1e-4/20/2",) * 2}, "two are the same"),
    ({"lanes": ("sgd/1e-4/20",)}, "'sgd/1e-4/20' is no optimizer/"),
    ({"lanes": ("sgd/1e-4/2/0", "sgd/0.0001/2/0")}, "two are the same"),
    ({"lanes": ("sgd/inf/3/0",)}, "'sgd/inf/3/0' is no optimizer/"),
    ({"lanes": ("sgd/nan/3/0",)}, "'sgd/nan/3/0' is no optimizer/"),
    ({"gamma": -1.0}, "gamma=-1.0; allowed: finite numbers from 0"),
    ({"lanes": ("sgd/1e-4/-1/0",)}, "'sgd/1e-4/-1/0' is no"),
    ({"lanes": ("sdg/1e-4/2/0",)}, "did you mean 'sgd'"),
    (
      {"drawn": 16, "preset": "paper_code"},
      "drawn=16; allowed: 1 to 15",
    ),
    ({"concept_batch": 5}, "concept_batch=5; allowed: 1 to 4"),
    ({"terms": 0}, "terms=0; allowed: whole numbers from 1"),
    ({"resilience": 1.5}, "resilience=1.5; allowed: 0 to 1"),
  ],
)
def test_settings_that_cannot_be(options, words):
  with pytest.raises(ValueError, match=words):
    resalign.Hparams(**options)


def test_phrases_are_dealt_out_to_the_sets():
  remain = {"latents": np.zeros((5, 1, 1, 1)), "pair": np.arange(5) % 3}
  found = images.tuning(sets.Sets(remain, remain, {}), 2)
  np.testing.assert_array_equal(found["sizes"], [3, 2])
  np.testing.assert_array_equal(found["rows"], [[0, 2, 3], [1, 4, 1]])
  assert images.check_sets(("sgd/1/1/0", "sgd/1/1/1"), 2) == 2
  with pytest.raises(ValueError, match="3 sets of images, but 2 phrases"):
    images.check_sets(("sgd/1/1/0", "sgd/1/1/2"), 2)


def test_the_releases_adapters_begin_at_random():
  made = {
    f"{i}/kernel": {"down": jnp.zeros((200, 4)), "up": jnp.zeros((4, 300))}
    for i in range(3)
  }
  found = resalign.random_factors(made, jax.random.key(0))
  assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, made)
  for factors in found.values():
    np.testing.assert_allclose(jnp.std(factors["down"]), 0.008, rtol=0.1)
    np.testing.assert_allclose(jnp.std(factors["up"]), 0.002, rtol=0.1)


def test_a_lane_of_the_release():
  h = resalign.Hparams(lanes=("sgd/0.5/1/0",), drawn=1, preset="paper_code")
  theta, direct = {"x": jnp.array([0.5, -1.0])}, {"x": jnp.array([0.1, 0.2])}
  lane, key = one(lanes.parse(h.lanes), 0), jax.random.key(0)
  h = dataclasses.replace(h, cap=100.0)
  found, metrics = lane_gradient(
    Quadratics(), h, theta, lane, direct, (key, key)
  )
  # H is 1, so that J is -1 with s of 1, and 0 with s of 1/2.
  w = 1 + 0.5 * (theta["x"] - 1)
  assert metrics["s"] == 1
  wanted = direct["x"] - 0.8 * 2 * w
  np.testing.assert_allclose(found["x"], wanted, rtol=1e-6)
  assert metrics["dropped"] == 0


LANES = ("sgd/0.015625/8/0", "sgd/0.03125/3/1")


def loss_of(h, monkeypatch, losses=Quadratics):
  """Value, gradient and metrics of a whole step at (0.5, -1)."""
  monkeypatch.setattr(step, "Losses", lambda *_: losses())
  theta = {"x": jnp.array([0.5, -1.0])}
  batch = {"step": jnp.zeros(1, jnp.int32)}
  grad = jax.jit(
    jax.value_and_grad(
      functools.partial(cast(Any, step.loss), None, None, h), has_aux=True
    )
  )
  (value, metrics), found = grad(theta, {}, batch, jax.random.key(0))
  return value, np.asarray(found["x"]), metrics


# L is of as many rows as what remains, or of fewer.
@pytest.mark.parametrize("at_once, rows", [(0, 4), (1, 4), (0, 1), (1, 1)])
@pytest.mark.parametrize("how", [*options.HYPERGRADS, "paper_code"])
def test_a_whole_step(how, at_once, rows, monkeypatch):
  released = how == "paper_code"
  h = resalign.Hparams(
    preset=how if released else "fixed",
    hypergrad="neumann" if released else how,
    lanes=LANES, drawn=2, terms=30, resilience=0.75, cap=1e9,
    lanes_at_once=at_once, concept_batch=rows,
  )  # fmt: skip
  value, found, metrics = loss_of(h, monkeypatch)
  theta, slope = np.array([0.5, -1.0]), np.array([3.0, -2.0])
  direct = -0.25 * 2 * theta + 1.6 * slope
  each, after = [], []
  for rate, steps, bent in ((2**-6, 8, 1), (2**-5, 3, 2)):
    shrunk = (1 - rate * bent) ** steps
    w = 1 + shrunk * (theta - 1)
    # J = 1 - s (1 + H): -1 with H of 1, whose 30 terms are 0; with H of 2 it
    # grows, and s of 1/2 has J of -1/2.
    series = 0.0 if bent == 1 else 0.5 * (1 - 0.5**30) / 1.5
    factor = {
      "first_order": 1,
      "neumann": 1 / (1 + steps * rate * bent),
      "unrolled": shrunk,
      "paper_code": series,
    }[how]
    each.append(direct - 0.75 * 2 * w * factor)
    after.append(-np.sum(w**2))
  np.testing.assert_allclose(found, np.mean(each, 0), rtol=1e-6)
  parts = -0.25 * np.sum(theta**2) + 0.75 * np.mean(after) + 1.6 * theta @ slope
  np.testing.assert_allclose(value, parts, rtol=1e-6)
  np.testing.assert_allclose(metrics["tuned"], np.mean(after), rtol=1e-6)


def test_without_resilience_it_is_plain_unlearning(monkeypatch):
  h = resalign.Hparams(lanes=LANES, resilience=0.0)
  _, found, _ = loss_of(h, monkeypatch)
  wanted = -2 * np.array([0.5, -1.0]) + 1.6 * np.array([3.0, -2.0])
  np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("preset", options.PRESETS)
def test_a_lane_that_diverges_leaves_no_gradient(preset, monkeypatch):
  h = resalign.Hparams(preset=preset, lanes=("sgd/1e30/30/0",), drawn=1)
  _, found, _ = loss_of(h, monkeypatch)
  assert np.isnan(found).all()


def test_a_lane_that_does_not_count_may_diverge():
  counts = jnp.array([True, False, True])
  rows = jnp.array([[1.0, 2.0], [np.nan, np.inf], [3.0, -2.0]])
  made = {"a": {"down": rows}}
  left = packs.Left(
    counts, jnp.array([0.5, np.nan, 1.5]), made, {"s": rows[:, 0]}
  )
  gradient, metrics = packs.mean([left])
  np.testing.assert_array_equal(gradient["a"]["down"], [2, 0])
  assert (metrics["tuned"], metrics["s"]) == (1, 2)
  # One that counts is not left out.
  gradient, _ = packs.mean([left._replace(counts=~counts)])
  assert np.isnan(gradient["a"]["down"]).all()


def test_a_weight_without_a_gradient_stands_still_on_the_way_back():
  lane = one(lanes.parse(["adam/0.0625/5/0"]), 0)

  def tuned(theta):
    return lanes.tune(
      lambda u, key: u["x"][0] ** 2, {"x": theta}, lane, jax.random.key(0), 5
    )["x"]

  found = jax.jacobian(tuned)(jnp.array([0.5, -1.0]))
  np.testing.assert_array_equal(found[1], [0, 1])
  assert np.isfinite(found).all()


def test_every_attempt_draws_an_image_of_its_own(monkeypatch):
  class Drawn(Quadratics):
    def tuning(self, u, key, of, rows):
      # Too curved for all but about one image of three.
      bent = jnp.where(jax.random.uniform(key) < 0.7, 100.0, 0.5)
      return 0.5 * bent * jnp.sum((u["x"] - 1) ** 2)

  h = resalign.Hparams(
    lanes=("sgd/0/0/0",), drawn=1, preset="paper_code", cap=1e9
  )
  lane, theta = one(lanes.parse(h.lanes), 0), {"x": jnp.array([0.5, -1.0])}
  direct = {"x": jnp.zeros(2)}
  found = {
    float(
      lane_gradient(Drawn(), h, theta, lane, direct, (jax.random.key(i),) * 2)[
        1
      ]["s"]
    )
    for i in range(12)
  }
  # One image for all attempts would give 1 or the least s alone.
  assert found & {0.5, 0.25, 0.125}
