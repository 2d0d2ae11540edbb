"""ResAlign's gradients through a tuning, against algebra and the release."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unlearning_jax.erasures.resalign import hypergrad, lanes, options

pytestmark = pytest.mark.usefixtures("quickest_compiler")
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


class Pulled:
  """The rows of a double of `Losses` that has `concept` and `remain`."""

  def concept_rows(self, keys, rows):
    return jnp.ones(rows)

  def remain_rows(self, key):
    return jnp.zeros(options.Hparams.batch_size)

  def squared(self, u, rows):
    concept = -self.concept(u, None, None)
    return jnp.where(rows[0] > 0, concept, self.remain(u, None))


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
    trees[0], trees[1], product, terms=5, cap=float(golden[f"cap{case}"])
  )
  whole = np.concatenate([found["0"], found["1"]])
  np.testing.assert_allclose(whole, golden[f"found{case}"], rtol=1e-12)
  assert bool(dropped) == bool(golden[f"dropped{case}"])
