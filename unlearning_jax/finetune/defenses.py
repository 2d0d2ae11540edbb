"""Tuning that leaves an erasure alone, for whoever tunes an erased model.

Let the rows of E be text states of the erased prompts, and kernel = W^T any key
or value projection, (d, o), with W' as the erasure left it. What an erased
prompt says to the network is E kernel'. Three ways to keep that:

  project   every update of a kernel loses its part in the span U of E,
            (I - U U^T) update: then U^T kernel = U^T kernel', exactly
  anchor    b |E (kernel - kernel')|^2 is added to the loss
  reassert  after tuning, each kernel becomes the least-squares one that says
            E kernel' again and otherwise what it has learnt
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jaxtyping import Array, Float, Float64, PRNGKeyArray

from unlearning_jax import closed_form
from unlearning_jax.finetune.loop import Loss
from unlearning_jax.finetune.partition import SUBSETS
from unlearning_jax.projections import cross_attention_kernels

_HIGHEST = jax.lax.Precision.HIGHEST


def erased_basis(
  states: Float[np.ndarray, "n d"],
  k: int | None = None,
  mean: Float[np.ndarray, " d"] | None = None,
  energy: float = 1.0,
) -> Float64[np.ndarray, "d k"]:
  """U: orthonormal columns that span the erased states, or their k main ones.

  A few sentences have states in all directions, if little in most: with all of
  them held, keys and values can learn nothing, whatever the data.

  Args:
    states: E.
    k: how many; None for as few as hold `energy` of the states.
    mean: a state that all prompts share (of start and padding), taken off each
      row first. Then more can be learnt, and less is guaranteed: a shift that
      all prompts share is free.
    energy: share of the sum of squares; 1 for all that is not rounding.

  Raises:
    ValueError: k is not from 1 to the rank of the states, or `energy` no share.
  """
  rows = np.asarray(states, np.float64)
  rows = rows if mean is None else rows - np.asarray(mean, np.float64)
  _, sizes, directions = np.linalg.svd(rows, full_matrices=False)
  rank = int((sizes > sizes[0] * 1e-6).sum()) if sizes[0] else 0
  if not 0 < energy <= 1:
    raise ValueError(f"{energy=}; allowed: above 0, at most 1")
  if k is None:
    held = np.cumsum(sizes[:rank] ** 2)
    # A little less than all of it: sums are rounded.
    share = energy * (1 - 1e-12) * held[-1] if rank else 0
    k = rank if energy == 1 else 1 + int(np.searchsorted(held, share))
  if not 1 <= k <= rank:
    raise ValueError(f"{k=}; allowed: 1 to {rank}, the rank of erased states")
  return directions[:k].T


def project(basis: Float[np.ndarray, "d k"]) -> optax.GradientTransformation:
  """The last link of an optimizer: updates of keys and values leave U alone.

  It takes updates, not gradients: Adam and weight decay would turn a projected
  gradient back into the span. Of an adapter it is `down` that is projected, so
  begin with `outside(adapters, basis)`.
  """
  return optax.stateless(lambda updates, params: outside(updates, basis))


def outside(tree: Any, basis: Float[np.ndarray, "d k"]) -> Any:
  """(I - U U^T) x, for every key and value kernel or `down` factor x."""
  u = jnp.asarray(basis, jnp.float32)

  def remove(path: Any, leaf: Array) -> Array:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if not SUBSETS["kv"](name.removesuffix("/down")):
      return leaf
    inside = jnp.matmul(u.T, leaf, precision=_HIGHEST)
    return leaf - jnp.matmul(u, inside, precision=_HIGHEST)

  return jax.tree_util.tree_map_with_path(remove, tree)


def anchored(
  loss: Loss,
  join: Callable[[Any, Any], Any],
  weight: float,
) -> Loss:
  """The loss with b |E (kernel - kernel')|^2, as metric `anchor` without b.

  Its `frozen` needs an entry `anchor`, of `anchor`.
  """

  def total(params: Any, frozen: Any, batch: Any, key: PRNGKeyArray):
    value, metrics = loss(params, frozen, batch, key)
    joined = _kernels(join(params, frozen["params"]))
    moved = jnp.zeros(())
    for path, before in frozen["anchor"]["kernels"].items():
      root, change = frozen["anchor"]["root"], joined[path] - before
      moved += jnp.sum(jnp.matmul(root, change, precision=_HIGHEST) ** 2)
    return value + weight * moved, metrics | {"anchor": moved}

  return total


def anchor(params: Any, states: Float[np.ndarray, "n d"]) -> dict[str, Any]:
  """What `anchored` reads: `kernels` before tuning, and a root of E^T E."""
  rows = np.asarray(states, np.float64)
  # R of E = QR: |R x| = |E x|, however many rows E has.
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
  """Makes a tuned model say of erased prompts what it said before tuning.

  min b |E (W - W')^T|^2 + preserve_scale |K (W - W_T)^T|^2 + lamb |W - W_T|^2
  for every key and value projection:
  kernel_T + A^-1 b E^T E (kernel' - kernel_T)
  with A = b E^T E + preserve_scale K^T K + lamb I, in float64.

  Args:
    tuned: W_T.
    erased: W', the model before tuning.
    states: E.
    kept: K, text states whose meaning is held.
    weight: b, of what was erased.
    preserve_scale: their weight.
    lamb: weight of the distance to the tuned weights.

  Raises:
    ValueError: a negative weight, or a system that cannot be solved safely.
  """
  closed_form.check_scales(
    weight=weight, preserve_scale=preserve_scale, lamb=lamb
  )
  rows, held = (np.asarray(x, np.float64) for x in (states, kept))
  gram = weight * rows.T @ rows
  system = gram + preserve_scale * held.T @ held + lamb * np.eye(len(gram))
  back, _ = closed_form.solve_spd(system, gram, f"lamb={lamb}")
  leaves = dict(traverse_util.flatten_dict(dict(tuned["unet"]), sep="/"))
  before = cross_attention_kernels(erased)
  for path, kernel in cross_attention_kernels(tuned).items():
    wide = np.asarray(kernel, np.float64)
    moved = wide + back @ (np.asarray(before[path], np.float64) - wide)
    leaves[path] = moved.astype(kernel.dtype)
  return {**tuned, "unet": traverse_util.unflatten_dict(leaves, sep="/")}


def _kernels(params: Any) -> dict[str, Any]:
  leaves: Any = traverse_util.flatten_dict(dict(params["unet"]), sep="/")
  return {path: leaf for path, leaf in leaves.items() if SUBSETS["kv"](path)}
