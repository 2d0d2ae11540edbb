"""Tuning of an erased model that keeps the erasure.

Let the rows of E be text states of the erased prompts, kernel = W^T any key or
value projection, (d, o), and kernel' that of the erased model. An erased prompt
reaches the network as E kernel'. Three defenses keep that:

  project   removes from every update of a kernel its part in the span U of E,
            (I - U U^T) update, so U^T kernel = U^T kernel' exactly
  anchor    adds b |E (kernel - kernel')|^2 to the loss
  reassert  replaces each kernel after tuning by a least-squares solution that
            gives E kernel' again and otherwise stays near the tuned kernel
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Float64, PRNGKeyArray

from unlearning_jax import closed_form
from unlearning_jax.finetune.loop import Loss
from unlearning_jax.finetune.partition import SUBSETS, Leaves
from unlearning_jax.projections import (
  Params,
  cross_attention_kernels,
  leaves_of,
  with_kernels,
)

Tree = TypeVar("Tree")

_HIGHEST = jax.lax.Precision.HIGHEST


def erased_basis(
  states: Float[np.ndarray, "n d"],
  k: int | None = None,
  mean: Float[np.ndarray, " d"] | None = None,
  energy: float = 1.0,
) -> Float64[np.ndarray, "d k"]:
  """U: orthonormal columns that span E, or its k main directions.

  The states of a few sentences reach into all directions, into most of them a
  little. With all directions held, keys and values cannot learn any data.

  Args:
    states: E.
    k: number of directions; None for the fewest that hold `energy`.
    mean: a state that all prompts share (of start and padding), subtracted from
      each row first. Then tuning can learn more and less is guaranteed, because
      a shift that all prompts share is allowed.
    energy: share of the sum of squares to hold; 1 for all but rounding.

  Raises:
    ValueError: k is not from 1 to the rank of E; `energy` is not above 0 and at
      most 1.
  """
  rows = np.asarray(states, np.float64)
  rows = rows if mean is None else rows - np.asarray(mean, np.float64)
  _, sizes, directions = np.linalg.svd(rows, full_matrices=False)
  rank = int((sizes > sizes[0] * 1e-6).sum()) if sizes[0] else 0
  if not 0 < energy <= 1:
    raise ValueError(f"{energy=}; allowed: above 0, at most 1")
  if k is None:
    held = np.cumsum(sizes[:rank] ** 2)
    # Slightly less than the share itself, because the sums are rounded.
    share = energy * (1 - 1e-12) * held[-1] if rank else 0
    k = rank if energy == 1 else 1 + int(np.searchsorted(held, share))
  if not 1 <= k <= rank:
    raise ValueError(f"{k=}; allowed: 1 to {rank}, the rank of erased states")
  return directions[:k].T


def project(basis: Float[np.ndarray, "d k"]) -> optax.GradientTransformation:
  """Removes U's span from updates of keys and values; an optimizer's last link.

  It must see updates, not gradients, because Adam and weight decay would turn a
  projected gradient back into the span. Of an adapter it projects `down`, so
  start from `outside(adapters, basis)`.
  """
  return optax.stateless(lambda updates, params: outside(updates, basis))


def outside(tree: Tree, basis: Float[np.ndarray, "d k"]) -> Tree:
  """(I - U U^T) x, for every key and value kernel or `down` factor x."""
  u = jnp.asarray(basis, jnp.float32)

  def remove(path: jax.tree_util.KeyPath, leaf: Array) -> Array:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if not SUBSETS["kv"](name.removesuffix("/down")):
      return leaf
    inside = jnp.matmul(u.T, leaf, precision=_HIGHEST)
    return leaf - jnp.matmul(u, inside, precision=_HIGHEST)

  return jax.tree_util.tree_map_with_path(remove, tree)


def anchored(
  loss: Loss,
  join: Callable[[Any, Any], Params],
  weight: float,
) -> Loss:
  """The loss plus b |E (kernel - kernel')|^2; the metric `anchor` leaves b out.

  `frozen["anchor"]` must hold what `anchor` returns; `weight` is b.
  """

  def total(
    params: Leaves,
    frozen: Mapping[str, Any],
    batch: Mapping[str, Array],
    key: PRNGKeyArray,
  ):
    value, metrics = loss(params, frozen, batch, key)
    joined = _kernels(join(params, frozen["params"]))
    moved = jnp.zeros(())
    for path, before in frozen["anchor"]["kernels"].items():
      root, change = frozen["anchor"]["root"], joined[path] - before
      moved += jnp.sum(jnp.matmul(root, change, precision=_HIGHEST) ** 2)
    return value + weight * moved, metrics | {"anchor": moved}

  return total


def anchor(params: Params, states: Float[np.ndarray, "n d"]) -> dict[str, Any]:
  """What `anchored` reads: `kernels` before tuning, and a `root` of E^T E."""
  rows = np.asarray(states, np.float64)
  # With E = QR, |R x| = |E x|, and R has few rows however many E has.
  root = np.asarray(np.linalg.qr(rows, mode="r"), np.float32)
  return {"kernels": _kernels(params), "root": root}


def reassert(
  tuned: Mapping[str, Any],
  erased: Mapping[str, Any],
  states: Float[np.ndarray, "n d"],
  kept: Float[np.ndarray, "m d"],
  *,
  weight: float = 1.0,
  preserve_scale: float = 1.0,
  lamb: float = 0.1,
) -> dict[str, Any]:
  """Gives the keys and values of erased prompts back what they were.

  min b |E (W - W')^T|^2 + preserve_scale |K (W - W_T)^T|^2 + lamb |W - W_T|^2
  for every key and value projection, in float64:
  kernel_T + A^-1 b E^T E (kernel' - kernel_T)
  with A = b E^T E + preserve_scale K^T K + lamb I.

  Args:
    tuned: parameters of W_T.
    erased: parameters of W', before tuning.
    states: E.
    kept: K, text states to hold as tuned.
    weight: b.

  Raises:
    ValueError: a weight is negative; the system cannot be solved safely.
  """
  closed_form.check_scales(
    weight=weight, preserve_scale=preserve_scale, lamb=lamb
  )
  rows, held = (np.asarray(x, np.float64) for x in (states, kept))
  gram = weight * rows.T @ rows
  system = gram + preserve_scale * held.T @ held + lamb * np.eye(len(gram))
  back, _ = closed_form.solve_spd(system, gram, f"lamb={lamb}")
  before, moved = cross_attention_kernels(erased), {}
  for path, kernel in cross_attention_kernels(tuned).items():
    wide = np.asarray(kernel, np.float64)
    moved[path] = wide + back @ (np.asarray(before[path], np.float64) - wide)
  return with_kernels(tuned, moved)


def _kernels(params: Params) -> dict[str, Any]:
  leaves = leaves_of(params["unet"])
  return {path: leaf for path, leaf in leaves.items() if SUBSETS["kv"](path)}
