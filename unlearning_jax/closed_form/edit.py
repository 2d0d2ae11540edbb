"""The edit itself: applied to weights, to text states, kept in files."""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util
from jaxtyping import Array, Float, Float64

from unlearning_jax import durable
from unlearning_jax.closed_form.weights import (
  Params,
  base_fingerprint,
  cross_attention_kernels,
)
from unlearning_jax.concepts import Concept

# Frobenius norm of T - I below which float32 kernels hardly move.
MIN_CHANGE = 1e-6
_FORMAT = "unlearning_jax edit 1"
_HIGHEST = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True, eq=False)
class Edit:
  """What a closed-form erasure changed, and nothing else.

  Attributes:
    context_map: T; W' = W T for every cross-attention key and value projection.
    base: fingerprint of the model it was computed from.
    method: who made it, e.g. "uce2023".
    concepts: what was erased.
    diagnostics: numbers on the solve and on the change, plain JSON values.
  """

  context_map: Float64[np.ndarray, "d d"]
  base: str
  method: str
  concepts: tuple[Concept, ...]
  diagnostics: Mapping[str, Any]


def make_edit(
  context_map: Float64[np.ndarray, "d d"],
  params: Params,
  gram: Float64[np.ndarray, "d d"],
  *,
  method: str,
  concepts: Iterable[Concept],
  diagnostics: Mapping[str, Any],
) -> Edit:
  """Signs a context map as an edit of `params`.

  Args:
    context_map: T.
    params: the model that T was computed from.
    gram: its `projection_gram`, for `relative_change`: |W' - W| / |W| over all
      projections.
    method: name of method and preset.
    concepts: what was erased.
    diagnostics: of the solve.

  Raises:
    ValueError: T is not finite, or changes nothing.
  """
  change = context_map - np.eye(len(context_map))
  if not np.isfinite(change).all():
    raise ValueError(f"{method}: the context map holds NaN or infinity")
  if np.linalg.norm(change) < MIN_CHANGE:
    raise ValueError(
      f"{method}: the edit changes nothing, |T - I| = "
      f"{np.linalg.norm(change):.1e}: every concept means what its anchor "
      "means, or its scale is 0"
    )
  # |W (T - I)|^2 summed over projections is the trace of (T-I)^T S (T-I).
  moved = np.sum(change * (gram @ change)) / np.trace(gram)
  return Edit(
    context_map,
    base_fingerprint(params),
    method,
    tuple(concepts),
    {**diagnostics, "relative_change": float(np.sqrt(moved))},
  )


def compose(first: Edit, second: Edit) -> Edit:
  """Stacks two edits of one base: W' = W T_first T_second.

  This is not the joint edit of both: each was solved without the other.

  Raises:
    ValueError: they were made from different bases.
  """
  if first.base != second.base:
    raise ValueError(
      f"edits of different bases: {first.method} of {first.base}, "
      f"{second.method} of {second.base}"
    )
  return Edit(
    first.context_map @ second.context_map,
    first.base,
    f"{first.method}+{second.method}",
    first.concepts + second.concepts,
    {"composed": [dict(first.diagnostics), dict(second.diagnostics)]},
  )


def check_base(edit: Edit, params: Params):
  """Refuses parameters that the edit was not made from.

  Raises:
    ValueError: with both fingerprints.
  """
  found = base_fingerprint(params)
  if found != edit.base:
    raise ValueError(
      f"the {edit.method} edit was made from base {edit.base}, these "
      f"parameters are {found}; apply it to its base, or erase again from them"
    )


def apply_to_params(edit: Edit, params: Params) -> dict[str, Any]:
  """The edited model; every leaf that is no text projection stays the same.

  Kernels are changed in float32 at full precision, whatever they are stored in,
  and cast back once.

  Raises:
    ValueError: `params` are not the edit's base.
  """
  check_base(edit, params)
  leaves = traverse_util.flatten_dict(params["unet"], sep="/")
  change = (edit.context_map - np.eye(len(edit.context_map))).T
  leaves |= moved(change.astype(np.float32), cross_attention_kernels(params))
  return {**params, "unet": traverse_util.unflatten_dict(leaves, sep="/")}


@jax.jit
def moved(change: Array, kernels: dict[str, Array]) -> dict[str, Array]:
  """Kernels plus (T - I)^T kernel, in float32; `change` is (T - I)^T."""

  def move(kernel: Array) -> Array:
    wide = kernel.astype(jnp.float32)
    step = jnp.matmul(change, wide, precision=_HIGHEST)
    return (wide + step).astype(kernel.dtype)

  return jax.tree.map(move, kernels)


def apply_to_context(
  edit: Edit, context: Float[Array, "*b l d"]
) -> Float[Array, "*b l d"]:
  """T c for every text state c: the base UNet then acts as the edited one."""
  if context.shape[-1] != len(edit.context_map):
    raise ValueError(
      f"text states are {context.shape[-1]} wide, the edit "
      f"{len(edit.context_map)}"
    )
  change = (edit.context_map - np.eye(len(edit.context_map))).T
  wide = context.astype(jnp.float32)
  step = jnp.matmul(wide, change.astype(np.float32), precision=_HIGHEST)
  return (wide + step).astype(context.dtype)


def save_edit(edit: Edit, path: str | pathlib.Path) -> None:
  """Writes the edit as safetensors: `context_map`, the rest as metadata."""
  metadata = {
    "format": _FORMAT,
    "base": edit.base,
    "method": edit.method,
    "concepts": json.dumps([dataclasses.asdict(c) for c in edit.concepts]),
    "diagnostics": json.dumps(dict(edit.diagnostics), allow_nan=False),
  }
  tensors = {"context_map": np.ascontiguousarray(edit.context_map)}
  with durable.replacing(pathlib.Path(path)) as file:
    file.write(safetensors.numpy.save(tensors, metadata))


def load_edit(path: str | pathlib.Path) -> Edit:
  """Reads an edit that `save_edit` wrote.

  Raises:
    ValueError: the file is no edit; a tensor is missing, extra, misshaped, not
      float64 or not finite; the metadata lacks a key.
  """
  try:
    with safetensors.safe_open(str(path), framework="numpy") as file:
      metadata = file.metadata() or {}
      tensors = {name: file.get_tensor(name) for name in file.keys()}
  except safetensors.SafetensorError as error:
    raise ValueError(f"{path} is no safetensors file: {error}") from error
  if metadata.get("format") != _FORMAT:
    raise ValueError(
      f"{path}: format={metadata.get('format')!r}; allowed: {_FORMAT!r}"
    )
  lacking = {"base", "method", "concepts", "diagnostics"} - set(metadata)
  if lacking or set(tensors) != {"context_map"}:
    raise ValueError(
      f"{path}: tensors {sorted(tensors)}, expected ['context_map']; metadata "
      f"lacking: {sorted(lacking) or 'none'}"
    )
  context_map = tensors["context_map"]
  shape, dtype = context_map.shape, context_map.dtype
  if len(shape) != 2 or shape[0] != shape[1] or dtype != np.float64:
    raise ValueError(
      f"{path}: context_map is {dtype} {shape}, not float64 (d, d)"
    )
  if not np.isfinite(context_map).all():
    raise ValueError(f"{path}: context_map holds NaN or infinity")
  return Edit(
    context_map,
    metadata["base"],
    metadata["method"],
    tuple(Concept(**c) for c in json.loads(metadata["concepts"])),
    json.loads(metadata["diagnostics"]),
  )
