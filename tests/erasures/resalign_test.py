"""ResAlign: its gradients against algebra in float64, its lanes, its step."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unlearning_jax.erasures import resalign
from unlearning_jax.erasures.resalign import hypergrad, images, lanes
from unlearning_jax.erasures.salun import sets

SIZE = 5


@pytest.fixture(autouse=True)
def doubles():
  with jax.enable_x64(True):
    yield


@pytest.fixture
def quadratic():
  """Matrix and centre of L(u) = (u - b)^T A (u - b) / 2; theta; a matrix C."""
  rng = np.random.default_rng(0)
  a, c = rng.normal(size=(2, SIZE, SIZE))
  return a @ a.T / 5, rng.normal(size=SIZE), rng.normal(size=SIZE), c @ c.T


def tuning_loss(a, b, u, key=None):
  del key
  return 0.5 * (u["x"] - b) @ a @ (u["x"] - b)


def differences(function, at, size=1e-6):
  """The Jacobian by central differences."""
  return np.stack(
    [
      (function(at + size * e) - function(at - size * e)) / (2 * size)
      for e in np.eye(len(at))
    ],
    1,
  )


@pytest.mark.parametrize("gamma", [0.0, 0.02, 0.1])
def test_the_series_is_the_inverse(gamma, quadratic):
  a, b, theta, c = quadratic

  def tuned(theta):
    """argmin_u L(u) + |u - theta|^2 / (2 gamma)."""
    both = theta + gamma * a @ b
    return np.linalg.solve(np.eye(SIZE) + gamma * a, both)

  def after(theta):
    return np.array([-0.5 * tuned(theta) @ c @ tuned(theta)])

  w = {"x": jnp.array(tuned(theta))}
  g = {"x": -c @ w["x"]}
  product = hypergrad.curvature(functools.partial(tuning_loss, a, b), w)
  wanted = differences(after, theta)[0]
  most = gamma * np.linalg.norm(a, 2)
  for terms in (1, 3, 40):
    found, grown = hypergrad.neumann(g, product, gamma, terms)
    bound = most**terms / (1 - most) * np.linalg.norm(g["x"])
    assert np.linalg.norm(found["x"] - wanted) < bound + 1e-6
    assert grown <= most + 1e-12
  np.testing.assert_allclose(found["x"], wanted, atol=1e-6)


def test_a_series_that_grows_says_so(quadratic):
  a, b, theta, _ = quadratic
  product = hypergrad.curvature(
    functools.partial(tuning_loss, a, b), {"x": theta}
  )
  _, grown = hypergrad.neumann({"x": jnp.ones(SIZE)}, product, 10.0, 8)
  assert grown > 1


def test_curvature_is_the_hessian(quadratic):
  a, _, theta, _ = quadratic

  def loss(u):
    return jnp.sin(u["x"] @ a @ u["x"]) + jnp.sum(u["y"] ** 3) * u["x"][0]

  at = {"x": jnp.array(theta), "y": jnp.array([0.3, -1.0])}
  dense = jax.hessian(loss)(at)
  v = jax.tree.map(jnp.cos, at)
  found = hypergrad.curvature(loss, at)(v)
  for name in at:
    wanted = sum(dense[name][other] @ v[other] for other in at)
    np.testing.assert_allclose(found[name], wanted, atol=1e-12)


def one(listed, i):
  return jax.tree.map(lambda leaf: leaf[i], listed)


@pytest.mark.parametrize(
  "name", ["sgd/0.125/7/0", "adam/0.0625/5/0", "sgd/0/7/0", "sgd/0.125/0/0"]
)
def test_the_way_back_is_exact(name, quadratic):
  a, b, theta, _ = quadratic
  lane = one(lanes.parse([name]), 0)
  loss = functools.partial(tuning_loss, a, b)

  # Longer than the lane: it has ended, and stands still.
  def tuned(theta):
    key = jax.random.key(0)
    return lanes.tune(loss, {"x": theta}, lane, key, 9)["x"]

  found = jax.jacobian(tuned)(jnp.array(theta))
  np.testing.assert_allclose(found, differences(tuned, theta), atol=1e-7)
  if not lane.adam:
    once = np.eye(SIZE) - float(lane.learning_rate) * a
    wanted = np.linalg.matrix_power(once, int(lane.steps))
    np.testing.assert_allclose(found, wanted, atol=1e-12)
  if not lane.steps * lane.learning_rate:
    np.testing.assert_array_equal(found, np.eye(SIZE))


def test_a_short_tuning_is_near_the_papers_form(quadratic):
  a, b, theta, _ = quadratic
  loss = functools.partial(tuning_loss, a, b)
  errors = []
  for rate in (2**-6, 2**-8, 2**-10):
    lane = one(lanes.parse([f"sgd/{rate}/8/0"]), 0)
    found = jax.jacobian(
      lambda t, lane=lane: lanes.tune(
        loss, {"x": t}, lane, jax.random.key(0), 8
      )["x"]
    )(jnp.array(theta))
    near = np.linalg.inv(np.eye(SIZE) + 8 * rate * a)
    errors.append(np.linalg.norm(found - near))
  # Of second order in the steps times the rate.
  assert errors[0] > 10 * errors[1] > 100 * errors[2]


def adams(gradients, rate, twice):
  """What the steps of Adam add up to, in NumPy."""
  x = m = v = 0.0
  for i, g in enumerate(gradients, 1):
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    sizes = 1 - 0.9**i, 1 - 0.999**i
    step = rate * (np.sqrt(sizes[1]) / sizes[0] if twice else 1)
    x = x - step * m / sizes[0] / (np.sqrt(v / sizes[1]) + 1e-8)
  return x


@pytest.mark.parametrize("twice", [False, True])
def test_adam_and_the_releases(twice):
  slopes = np.random.default_rng(0).normal(size=(6, 3))
  rows = jnp.array(slopes)
  lane = one(lanes.parse(["adam/0.5/6/0"]), 0)
  key = jax.random.key(3)
  # The loss is linear, and its key tells the step.
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(6))
  every = jax.random.key_data(keys)

  def loss(u, key):
    at = (every == jax.random.key_data(key)[None]).all(-1)
    return (jnp.where(at[:, None], rows, 0).sum(0) * u["x"]).sum()

  start = {"x": jnp.zeros(3)}
  found = lanes.tune(loss, start, lane, key, 6, twice)["x"]
  wanted = adams(slopes, 0.5, twice)
  np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize(
  "cap, weight, made",
  [(9, 1, 0), (0.98, 31 / 32, 1), (0.8, 0.762695, 2), (0.5, 0.487091, 3),
   (0.28, 0.275796, 4), (0.15, 0.146785, 5), (0.1, 0, 5)],
)  # fmt: skip
def test_the_released_cap_fades_the_resilience(cap, weight, made):
  g = {"x": jnp.array([0.6, 0.8]), "y": jnp.zeros(2)}
  direct = {"x": jnp.zeros(2), "y": jnp.array([0.0, 0.01])}
  total, s, dropped = hypergrad.released(
    g, direct, lambda v, _: jax.tree.map(jnp.zeros_like, v), terms=5, cap=cap
  )
  np.testing.assert_allclose(total["x"], weight * g["x"], atol=1e-5)
  np.testing.assert_array_equal(total["y"], direct["y"])
  assert (float(s), bool(dropped)) == (2.0**-made, not weight)


@pytest.mark.parametrize(
  "curvature, s, kept",
  # J = 1 - s (1 + H) shrinks if s (1 + H) lies between 0 and 2.
  [(0.5, 1, True), (1.5, 0.5, True), (6.0, 0.25, True), (-1.5, 2**-5, False)],
)
def test_the_released_step_is_halved_until_it_shrinks(curvature, s, kept):
  g, direct = {"x": jnp.array([1.0])}, {"x": jnp.array([0.5])}
  total, found, dropped = hypergrad.released(
    g, direct, lambda v, _: {"x": curvature * v["x"]}, terms=5, cap=100.0
  )
  assert (float(found), bool(dropped)) == (s, not kept)
  bent = 1 - s * (1 + curvature)
  wanted = 0.5 + kept * s * sum(bent**k for k in range(5))
  np.testing.assert_allclose(total["x"], [wanted], rtol=1e-6)


def test_every_attempt_sees_another_image():
  seen = []

  def product(v, attempt):
    jax.debug.callback(lambda i: seen.append(int(i)), attempt)
    return {"x": 100 * v["x"]}

  one = {"x": jnp.array([1.0])}
  hypergrad.released(one, one, product, terms=2, cap=100.0)
  jax.effects_barrier()
  assert seen == [0, 1, 2, 3, 4, 5]


def test_a_value_has_the_gradient_that_it_is_given():
  at = {"x": jnp.array([1.0, 2.0]), "y": jnp.array(3.0)}
  wanted = jax.tree.map(jnp.sin, at)
  value, found = jax.value_and_grad(
    lambda x: hypergrad.with_gradient(jnp.array(7.0), wanted, x)
  )(at)
  assert value == 7
  jax.tree.map(np.testing.assert_array_equal, found, wanted)


class Quadratics:
  """`Losses` of two weights in the plane, whose gradients are known."""

  def concept(self, u, keys, rows):
    return -jnp.sum(u["x"] ** 2)

  def remain(self, u, key):
    return jnp.sum(u["x"] * jnp.array([3.0, -2.0]))

  def tuning(self, u, key, of, rows):
    return 0.5 * (1.0 + of) * jnp.sum((u["x"] - 1) ** 2)


def lane_gradient(losses, h, theta, lane, direct, keys):
  """A lane from its beginning to its gradient, and the loss that it ends at."""

  def tune(theta):
    return resalign.tuned(losses, h, theta, lane, keys[0])

  w, back = jax.vjp(tune, theta)
  value, g = jax.value_and_grad(losses.concept)(w, keys, 1)
  g = jax.tree.map(lambda leaf: h.resilience * leaf, g)
  if h.preset == "fixed" and h.hypergrad == "unrolled":
    (g,) = back(g)
  total, found = resalign.through(losses, h, lane, w, g, direct, keys[1])
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


@pytest.mark.parametrize("how", resalign.HYPERGRADS)
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
  found = [float(resalign.remain_weight(h, step)) for step in range(100)]
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
      {"drawn": 14, "preset": "paper_code"},
      "drawn=14; allowed: 1 to 13",
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
  monkeypatch.setattr(resalign, "Losses", lambda *_: losses())
  theta = {"x": jnp.array([0.5, -1.0])}
  batch = {"step": jnp.zeros(1, jnp.int32)}
  grad = jax.jit(
    jax.value_and_grad(
      functools.partial(resalign._loss, None, None, h), has_aux=True
    )
  )
  (value, metrics), found = grad(theta, {}, batch, jax.random.key(0))
  return value, np.asarray(found["x"]), metrics


@pytest.mark.parametrize("at_once", [0, 1])
@pytest.mark.parametrize("how", [*resalign.HYPERGRADS, "paper_code"])
def test_a_whole_step(how, at_once, monkeypatch):
  released = how == "paper_code"
  h = resalign.Hparams(
    preset=how if released else "fixed",
    hypergrad="neumann" if released else how,
    lanes=LANES, drawn=2, terms=30, resilience=0.75, cap=1e9,
    lanes_at_once=at_once,
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


@pytest.mark.parametrize("preset", resalign.PRESETS)
def test_a_lane_that_diverges_leaves_no_gradient(preset, monkeypatch):
  h = resalign.Hparams(preset=preset, lanes=("sgd/1e30/30/0",), drawn=1)
  _, found, _ = loss_of(h, monkeypatch)
  assert np.isnan(found).all()


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


@pytest.mark.parametrize("case", range(12))
def test_the_series_is_the_releases(case):
  """`fixed_point` of AntigoneRandy/ResAlign at 14775d3, run in float64."""
  path = pathlib.Path(__file__).parents[1] / "goldens" / "resalign.npz"
  golden = np.load(path)
  a, g, direct = (golden[f"{name}{case}"] for name in ("a", "g", "direct"))
  cut = slice(0, 12), slice(12, 20)
  trees = [{str(i): x[one] for i, one in enumerate(cut)} for x in (g, direct)]

  def product(v, _):
    bent = a @ jnp.concatenate([v["0"], v["1"]])
    return {str(i): bent[one] for i, one in enumerate(cut)}

  found, s, dropped = hypergrad.released(
    *trees, product, terms=5, cap=float(golden[f"cap{case}"])
  )
  whole = np.concatenate([found["0"], found["1"]])
  np.testing.assert_allclose(whole, golden[f"found{case}"], rtol=1e-12)
  assert bool(dropped) == bool(golden[f"dropped{case}"])
