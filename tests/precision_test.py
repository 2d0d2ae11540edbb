"""No matrix product of a closed form may be rounded to TF32 or bfloat16.

A CPU computes them in full whatever is asked, so what is asked is looked at.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import closed_form_cases as cases
from unlearning_jax import edits as edit
from unlearning_jax import stable_diffusion
from unlearning_jax.closed_form import mass

HIGHEST = (jax.lax.Precision.HIGHEST,) * 2


def products(jaxpr):
  """The precision of every matrix product, inner functions' included."""
  for equation in jaxpr.eqns:
    if equation.primitive.name in ("dot_general", "conv_general_dilated"):
      yield equation.params["precision"]
    for value in equation.params.values():
      for inner in value if isinstance(value, tuple | list) else (value,):
        inner = getattr(inner, "jaxpr", inner)
        if hasattr(inner, "eqns"):
          yield from products(inner)


def asked(function, *arguments):
  return list(products(jax.make_jaxpr(function)(*arguments).jaxpr))


def test_the_text_encoder(tmp_path):
  sd, params = cases.tiny(tmp_path)
  ids = jnp.zeros((1, cases.LENGTH), jnp.int32)
  found = asked(lambda p: stable_diffusion.encode_text(sd, p, ids), params)
  # Two layers of six products, attention's two included, at the least.
  assert len(found) >= 2 * 8
  assert set(found) == {HIGHEST}


SQUARE = jnp.eye(4)
KERNELS = {"k": jnp.ones((4, 3), jnp.bfloat16)}


@pytest.mark.parametrize(
  "function, arguments",
  [
    (edit.moved, (SQUARE, KERNELS)),
    (edit.storage_error, (SQUARE, KERNELS)),
    (mass._gram, (SQUARE[None], SQUARE[None])),
    (
      lambda x: edit.apply_to_context(
        edit.Edit(2 * np.eye(4), "", "", (), {}), x
      ),
      (jnp.ones((2, 5, 4)),),
    ),
  ],
  ids=["kernels", "storage", "sums", "context"],
)
def test_sums_and_changes(function, arguments):
  found = asked(function, *arguments)
  assert found and set(found) == {HIGHEST}


def test_would_find_a_product_of_lower_precision():
  def inner(x):
    return jax.jit(lambda y: jax.lax.map(lambda z: z @ SQUARE, y))(x)

  assert asked(inner, SQUARE) == [None]
