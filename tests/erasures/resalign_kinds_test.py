"""ResAlign's lanes of the whole UNet, and those with a prior set."""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from tests.erasures.resalign_gradients_test import (
  Pulled,
  differences,
  doubles,
  one,
)
from unlearning_jax.erasures.resalign import images, lanes, options, packs, step
from unlearning_jax.erasures.resalign.losses import Losses

__all__ = ["doubles"]
pytestmark = pytest.mark.usefixtures("quickest_compiler")
PLAIN, PRIOR = "sgd/0.015625/8/0", "sgd/0.03125/3/1+2"
FULL, BOTH = "adamw-full/0.0625/3/1", "adamw-full/0.03125/2/0+1"
EVERY = (FULL, PRIOR, PLAIN, BOTH)
KEY = jax.random.key(0)


def join(adapters, base):
  """W(theta), as `lora.merge`, in float64."""
  made = adapters["x"]["down"] @ adapters["x"]["up"]
  return {"unet": {"a": base["unet/a"] + made, "b": base["unet/b"]}}


class Matrices(Pulled, Losses):
  """Losses of two arrays, of which the adapters change one; no key counts."""

  def concept(self, adapters, keys, rows):
    its = self.join(adapters, self.frozen["params"])["unet"]
    return -jnp.sum(jnp.sin(its["a"])) * (1 + jnp.sum(its["b"] ** 2))

  def remain(self, adapters, key):
    its = self.join(adapters, self.frozen["params"])["unet"]
    return jnp.sum(its["a"] * jnp.array([[3.0, -2.0], [1.0, 0.5], [0, 2.0]]))

  def tuning(self, adapters, key, of, rows):
    its = self.join(adapters, self.frozen["params"])["unet"]
    near = jnp.sum((its["a"] - 1) ** 2) + jnp.sum(jnp.cos(its["b"]))
    return 0.5 * (1.0 + of) * near * (1 + 0.1 * jnp.sum(its["b"]))


@pytest.fixture
def parts():
  """theta, and the parts of the model that do not train."""
  rng = np.random.default_rng(0)
  made = {"down": rng.normal(size=(3, 1)), "up": rng.normal(size=(1, 2))}
  base = {"unet/a": rng.normal(size=(3, 2)), "unet/b": rng.normal(size=2)}
  return jax.tree.map(jnp.array, ({"x": made}, {"params": base}))


def hparams(**options_):
  made = {"terms": 3, "cap": 1e9, "resilience": 0.75} | options_
  if made.get("preset") == "paper_code":
    made.setdefault("drawn", len(made["lanes"]))
  return options.Hparams(**made)


def step_of(h, parts, monkeypatch, key=KEY, losses=Matrices):
  """Gradient and metrics of a whole step."""
  monkeypatch.setattr(step, "Losses", losses)
  theta, frozen = parts
  batch = {"step": jnp.zeros(1, jnp.int32)}
  function = functools.partial(cast(Any, step.loss), None, join, h)
  grad = jax.jit(jax.value_and_grad(function, has_aux=True))
  (value, metrics), found = grad(theta, frozen, batch, key)
  return found, metrics | {"value": value}


def close(found, wanted, rtol=1e-10):
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=rtol, atol=1e-12),
    found, wanted,
  )  # fmt: skip


@pytest.mark.parametrize("preset", options.PRESETS)
@pytest.mark.parametrize("name", ["adamw-full/0/3/1", "adamw-full/0.5/0/1"])
def test_a_full_lane_that_stands_still(name, preset, parts, monkeypatch):
  h = hparams(lanes=(name,), preset=preset)
  found, metrics = step_of(h, parts, monkeypatch)
  theta, frozen = parts
  losses = Matrices(cast(Any, None), join, frozen, {})

  def whole(theta):
    return losses.concept(theta, (KEY, KEY), 1) + 1.6 * losses.remain(
      theta, KEY
    )

  value, wanted = jax.value_and_grad(whole)(theta)
  close(found, wanted)
  close(metrics["value"], value)


@pytest.mark.parametrize("how", options.HYPERGRADS)
@pytest.mark.parametrize("name", [FULL, BOTH])
def test_a_full_lanes_gradient_is_that_at_the_moved_weights(
  name, how, parts, monkeypatch
):
  h = hparams(
    lanes=(name,), hypergrad=how, resilience=1.0, remain_weight=0.0,
    last_remain_weight=0.0,
  )  # fmt: skip
  found, metrics = step_of(h, parts, monkeypatch)
  theta, frozen = parts
  losses = Matrices(cast(Any, None), join, frozen, {})
  (pack,) = packs.packs(h, KEY, (KEY, KEY))
  weights, whole = losses.merged(theta), losses.of_weights()
  w = packs.tuned(whole, h, pack, weights, one(pack.lanes, 0), KEY)
  delta = jax.tree.map(jnp.subtract, w, weights)
  assert all(jnp.abs(leaf).min() > 0.01 for leaf in delta.values())
  flat, back = ravel_pytree(theta)

  def after(flat):
    moved = jax.tree.map(jnp.add, losses.merged(back(flat)), delta)
    return np.array([whole.concept(moved, (KEY, KEY), 1)])

  wanted = differences(after, np.asarray(flat))[0]
  close(ravel_pytree(found)[0], wanted, 1e-6)
  np.testing.assert_allclose(metrics["tuned"], after(flat)[0], rtol=1e-10)


@pytest.mark.parametrize("preset", options.PRESETS)
def test_all_weights_are_tuned_by_adamw(preset, parts):
  h = hparams(lanes=(FULL,), preset=preset)
  theta, frozen = parts
  whole = Matrices(cast(Any, None), join, frozen, {}).of_weights()
  weights = Matrices(cast(Any, None), join, frozen, {}).merged(theta)
  (pack,) = packs.packs(h, KEY, (KEY, KEY))
  found = packs.tuned(whole, h, pack, weights, one(pack.lanes, 0), KEY)
  tx = optax.adamw(0.0625, weight_decay=0.01)
  state = tx.init(weights)
  for _ in range(3):
    g = jax.grad(whole.tuning)(weights, KEY, 1, 1)
    updates, state = tx.update(g, state, weights)
    weights = optax.apply_updates(weights, updates)
  close(found, weights, 1e-6)


class Noisy(Matrices):
  """Each image has a loss of its own, and another curvature."""

  def tuning(self, adapters, key, of, rows):
    drawn = 1 + jax.random.uniform(key)
    return drawn * super().tuning(adapters, key, of, rows)


@pytest.mark.parametrize("name", [PRIOR, BOTH])
@pytest.mark.parametrize("preset", options.PRESETS)
def test_a_prior_of_no_weight_is_none(name, preset, parts, monkeypatch):
  plain = name.partition("+")[0]
  first, second = (
    step_of(
      hparams(lanes=(name,), preset=preset, prior_weight=weight), parts,
      monkeypatch, losses=Noisy,
    )[0]
    for name, weight in ((name, 0.0), (plain, 1.0))
  )  # fmt: skip
  close(first, second, 1e-13)


def test_a_prior_is_another_loss(parts):
  theta, frozen = parts
  losses = Matrices(cast(Any, None), join, frozen, {})
  noisy = Noisy(cast(Any, None), join, frozen, {})
  for name, wanted in (
    ("sgd/1/1/1+1", 1.25 * losses.tuning(theta, KEY, 1, 1)),
    (
      "sgd/1/1/1+2",
      losses.tuning(theta, KEY, 1, 1) + 0.25 * losses.tuning(theta, KEY, 2, 1),
    ),
  ):
    h = hparams(lanes=(name,), prior_weight=0.25)
    (pack,) = packs.packs(h, KEY, (KEY, KEY))
    lane = one(pack.lanes, 0)
    loss = packs.tuning(losses, h, pack, lane, 1)
    np.testing.assert_allclose(loss(theta, KEY), wanted, rtol=1e-12)
    # Its image is another one.
    drawn = packs.tuning(noisy, h, pack, lane, 1)(theta, KEY)
    assert abs(drawn / wanted - (1 + jax.random.uniform(KEY))) > 1e-3


@pytest.mark.parametrize("how", [*options.HYPERGRADS, "paper_code"])
def test_lanes_of_every_kind_are_lanes_alone(how, parts, monkeypatch):
  released = how == "paper_code"
  kind = {"preset": how} if released else {"hypergrad": how}
  alone = [
    step_of(hparams(lanes=(name,), **kind), parts, monkeypatch)
    for name in EVERY
  ]
  wanted = jax.tree.map(lambda *leaves: sum(leaves) / 4, *(g for g, _ in alone))
  for names in (EVERY, EVERY[::-1]):
    found, metrics = step_of(hparams(lanes=names, **kind), parts, monkeypatch)
    close(found, wanted)
    tuned = np.mean([its["tuned"] for _, its in alone])
    np.testing.assert_allclose(metrics["tuned"], tuned, rtol=1e-10)
  if released:
    return
  # Lanes of the whole UNet have no series.
  having = [its["dropped"] for _, its in alone if "dropped" in its]
  assert len(having) == (2 if how == "neumann" else 0)


def test_the_release_draws_lanes_of_every_kind(parts, monkeypatch):
  at = functools.partial(step_of, parts=parts, monkeypatch=monkeypatch)
  released = functools.partial(hparams, preset="paper_code")
  # One that diverges does so only where it is drawn.
  names = (*EVERY, "sgd/1e30/30/0")
  alone = [at(released(lanes=(name,)))[0] for name in names]
  seen = set()
  for i in range(12):
    key = jax.random.key(i)
    picked = jax.random.choice(
      jax.random.split(key, 7)[2], len(names), (2,), replace=False
    )
    found, _ = at(released(lanes=names, drawn=2), key=key)
    if 4 in picked:
      assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(found))
    else:
      first, second = (alone[int(i)] for i in picked)
      close(found, jax.tree.map(lambda a, b: (a + b) / 2, first, second))
    seen.add(tuple(sorted(map(int, picked))))
  assert len(seen) > 4 and any(4 in pair for pair in seen)


def test_a_full_lane_that_diverges_leaves_no_gradient(parts, monkeypatch):
  h = hparams(lanes=("adamw-full/1e38/30/0", PLAIN))
  found, _ = step_of(h, parts, monkeypatch)
  assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize(
  "names, words",
  [
    (
      ("adamw/1e-5/2/0",),
      "'adamw' is not known; allowed: sgd, adam, adamw-full",
    ),
    ((FULL, "adamw-full/6.25e-2/3/1"), "two are the same"),
    ((PRIOR, "sgd/3.125e-2/3/1+2"), "two are the same"),
    (("sgd/1/1/0+",), "'sgd/1/1/0\\+' is no .*'sgd/1e-4/5/1\\+3' with a prior"),
    (("sgd/1/1/+1",), "is no .*'adamw-full/1e-6/5/2' for the whole UNet"),
    (("sgd/1/1/0+1+2",), "'sgd/1/1/0\\+1\\+2' is no optimizer"),
    (("sgd/1/1/0+-1",), "'sgd/1/1/0\\+-1' is no optimizer"),
    (("sgd/1/1/0+0.5",), "'sgd/1/1/0\\+0.5' is no optimizer"),
    (("sgd/1/1+2/0",), "'sgd/1/1\\+2/0' is no optimizer"),
  ],
)
def test_lanes_that_cannot_be(names, words):
  with pytest.raises(ValueError, match=words):
    options.Hparams(lanes=names)


def test_a_prior_weight_below_zero():
  with pytest.raises(ValueError, match="prior_weight=-1.0; allowed: finite"):
    options.Hparams(prior_weight=-1.0)


def test_a_prior_set_that_no_phrase_fills():
  assert images.check_sets((PLAIN, PRIOR), 3) == 3
  with pytest.raises(ValueError, match="they name 3 sets.*but 2 phrases"):
    images.check_sets((PLAIN, PRIOR), 2)


@pytest.mark.parametrize(
  "name, word", [(PRIOR, "'sgd/1e-4/20/0'$"), (FULL, "allowed: sgd, adam;")]
)
def test_other_methods_have_plain_lanes(name, word):
  with pytest.raises(ValueError, match=word):
    lanes.parse([name])


def test_the_lanes_are_the_releases():
  """configs/*.json of AntigoneRandy/ResAlign at 14775d3."""
  every = lanes.parse(options.LANES, every_kind=True)
  assert len(every.of) == 15 and every.steps.sum() == 225
  assert (every.adam & ~every.full).sum() == 4 and (~every.adam).sum() == 10
  (whole,), (prior,) = (
    np.flatnonzero(every.full),
    np.flatnonzero(every.prior >= 0),
  )
  assert options.LANES[whole] == "adamw-full/1e-6/5/2"
  assert options.LANES[prior] == "sgd/1e-4/5/1+3"
