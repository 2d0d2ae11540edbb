"""Gradients inside a loop, on a CPU."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jaxtyping import Array, Float

_PLAIN = ("NHWC", "HWIO", "NHWC")


def in_loop(loss: Callable[..., Float[Array, ""]]) -> Callable[..., Any]:
  """`loss` for the body of a loop: the same numbers, and a gradient sooner.

  XLA turns the axes of a gradient's convolutions to those that a CPU's fast
  kernels read. It does so at the top of a program, not in the body of a loop,
  where convolutions of other axes are computed element by element. So the
  gradient is traced here, with its axes turned around each convolution.

  It is the gradient by the first argument; the others get none. Elsewhere than
  on a CPU the result is `loss` itself.
  """
  if jax.default_backend() != "cpu":
    return loss

  @jax.custom_vjp
  def value(x: Any, rest: tuple[Any, ...]) -> Array:
    return loss(x, *rest)

  def forward(x: Any, rest: tuple[Any, ...]) -> tuple[Array, Any]:
    return _turned(jax.value_and_grad(loss), x, *rest)

  def backward(slope: Any, above: Array) -> tuple[Any, None]:
    return jax.tree.map(lambda g: (above * g).astype(g.dtype), slope), None

  value.defvjp(forward, backward)
  return lambda x, *rest: value(x, rest)


def _turned(f: Callable[..., Any], *args: Any) -> Any:
  """`f(*args)` by convolutions of `_PLAIN` axes alone.

  What is computed again on the way back (`remat`) stays as it is.
  """
  closed, shape = jax.make_jaxpr(f, return_shape=True)(*args)
  found = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args))
  return jax.tree.unflatten(jax.tree.structure(shape), found)


def _evaluate(
  jaxpr: core.Jaxpr, consts: list[Any], args: list[Any]
) -> list[Any]:
  values = dict(
    zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True)
  )

  def read(variable: Any) -> Any:
    if isinstance(variable, core.Literal):
      return variable.val
    return values[variable]

  for equation in jaxpr.eqns:
    given = [read(variable) for variable in equation.invars]
    if equation.primitive.name == "conv_general_dilated":
      found = [_convolve(*given, **equation.params)]
    else:
      own = equation.primitive.get_bind_params(equation.params)
      found = equation.primitive.bind(*given, **own)
      if not equation.primitive.multiple_results:
        found = [found]
    values.update(zip(equation.outvars, found, strict=True))
  return [read(variable) for variable in jaxpr.outvars]


def _convolve(
  x: Array, kernel: Array, *, dimension_numbers: Any, **rest: Any
) -> Array:
  """A convolution of any axes, as one of `_PLAIN` between transposes."""
  (rows, width, *space), (out, into, *window), (*found,) = dimension_numbers
  made = jax.lax.conv_general_dilated(
    x.transpose(rows, *space, width), kernel.transpose(*window, into, out),
    dimension_numbers=_PLAIN, **rest,
  )  # fmt: skip
  return made.transpose(np.argsort([found[0], *found[2:], found[1]]))
