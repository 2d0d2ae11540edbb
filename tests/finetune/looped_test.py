"""A gradient for the body of a loop is the gradient, by plain convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unlearning_jax.finetune import in_loop

_RNG = np.random.default_rng(0)
ROWS = _RNG.normal(size=(3, 2, 6, 8, 3))
WEIGHTS = {
  "wide": _RNG.normal(size=(3, 3, 3, 4)),
  "halving": _RNG.normal(size=(3, 3, 4, 5)),
  "narrow": _RNG.normal(size=(1, 1, 5, 2)),
}


@pytest.fixture(autouse=True)
def doubles():
  with jax.enable_x64(True):
    yield


def loss(weights, rows, which):
  """Convolutions of each kind that the UNet has, and a list of arguments."""
  x = rows[which]
  for name, stride in (("wide", 1), ("halving", 2), ("narrow", 1)):
    x = jnp.sin(
      jax.lax.conv_general_dilated(
        x, weights[name], (stride, stride), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
      )
    )  # fmt: skip
  return jnp.square(x).mean()


def layouts(f, *args):
  """The axes of every convolution of `f`, also of functions that it calls."""
  found = set()

  def walk(jaxpr):
    for equation in jaxpr.eqns:
      if equation.primitive.name == "conv_general_dilated":
        found.add(tuple(map(tuple, equation.params["dimension_numbers"])))
      for one in jax.tree.leaves(
        tuple(equation.params.values()),
        is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"),
      ):
        if hasattr(one, "eqns") or hasattr(one, "jaxpr"):
          walk(getattr(one, "jaxpr", one))

  walk(jax.make_jaxpr(f)(*args).jaxpr)
  return found


def test_a_loop_of_gradients_is_the_same_by_plain_convolutions():
  def every(f, weights):
    def one(which):
      return jax.value_and_grad(f)(weights, jnp.asarray(ROWS), which)

    return jax.lax.map(one, jnp.arange(len(ROWS)))

  plain, turned = (
    jax.jit(every, static_argnums=0)(f, WEIGHTS) for f in (loss, in_loop(loss))
  )
  for one, other in zip(*map(jax.tree.leaves, (plain, turned)), strict=True):
    assert np.abs(one).max() > 1e-4
    np.testing.assert_allclose(other, one, rtol=1e-10, atol=1e-14)
  ordinary = (0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)
  assert len(layouts(lambda w: every(loss, w), WEIGHTS)) > 1
  assert layouts(lambda w: every(in_loop(loss), w), WEIGHTS) == {ordinary}


def test_the_gradient_has_a_derivative():
  def stepped(f, weights):
    slope = jax.grad(f)(weights, jnp.asarray(ROWS), 0)
    moved = jax.tree.map(lambda w, g: w - 0.5 * g, weights, slope)
    return f(moved, jnp.asarray(ROWS), 1)

  plain, turned = (
    jax.jit(jax.grad(stepped, 1), static_argnums=0)(f, WEIGHTS)
    for f in (loss, in_loop(loss))
  )
  for name, wanted in plain.items():
    np.testing.assert_allclose(turned[name], wanted, rtol=1e-9, atol=1e-13)


def test_elsewhere_than_on_a_cpu_it_is_the_loss(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  assert in_loop(loss) is loss
