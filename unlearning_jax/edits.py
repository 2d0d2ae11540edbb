"""The edit itself: applied to weights, to text states, kept in files.

Closed forms that touch nothing but what the text projections read are a context
map. Every other erasure is the leaves that it changed.
"""

import dataclasses
import hashlib
import json
import pathlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float, Float64

from unlearning_jax import durable
from unlearning_jax.concepts import Concept
from unlearning_jax.projections import (
  Fingerprint,
  Params,
  cross_attention_kernels,
)

# Frobenius norm of T - I below which float32 kernels hardly move.
MIN_CHANGE = 1e-6
FORMAT = "unlearning_jax edit 1"
_HIGHEST = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True, eq=False)
class Edit:
  """What an erasure changed, and nothing else: a context map, or leaves.

  Attributes:
    context_map: T; W' = W T for every cross-attention key and value projection.
    base: fingerprint of the model it was computed from: of the text side, of
      a context map, as that alone has to be the same.
    method: who made it, e.g. "uce2023".
    concepts: what was erased.
    diagnostics: numbers on the solve and on the change, plain JSON values.
    leaves: `unet/...` path -> the leaf's new value, where no context map is.
  """

  context_map: Float64[np.ndarray, "d d"] | None
  base: Fingerprint
  method: str
  concepts: tuple[Concept, ...]
  diagnostics: Mapping[str, Any]
  leaves: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    if (self.context_map is None) == (not self.leaves):
      raise ValueError(
        f"{self.method}: an edit is a context map or changed leaves, got "
        f"{'neither' if self.context_map is None else 'both'}"
      )

  @property
  def tensors(self) -> Mapping[str, np.ndarray]:
    """What a file of it holds: `context_map`, or the leaves by path."""
    if self.context_map is None:
      return self.leaves
    return {"context_map": self.context_map}


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
    Fingerprint.of(params, "text"),
    method,
    tuple(concepts),
    {**diagnostics, "relative_change": float(np.sqrt(moved))},
  )


def edit_between(
  params: Params,
  edited: Params,
  *,
  method: str,
  concepts: Iterable[Concept],
  diagnostics: Mapping[str, Any],
) -> Edit:
  """The edit that makes `edited` of `params`: every leaf that differs.

  `relative_change` is |new - old| / |old| over those leaves.

  Raises:
    ValueError: a leaf is missing, extra, misshaped or not finite; nothing
      differs.
  """
  old, new = (traverse_util.flatten_dict(p, sep="/") for p in (params, edited))
  if wrong := sorted(set(old) ^ set(new)):
    raise ValueError(f"{method}: leaves of one model only: {wrong[:5]}")
  leaves, moved, size = {}, 0.0, 0.0
  for path, before in old.items():
    if new[path] is before:
      continue
    before, after = np.asarray(before), np.asarray(new[path])
    if before.shape != after.shape or before.dtype != after.dtype:
      raise ValueError(
        f"{method}: {path} was {before.dtype} {before.shape}, is now "
        f"{after.dtype} {after.shape}"
      )
    if not np.isfinite(after).all():
      raise ValueError(f"{method}: {path} holds NaN or infinity")
    if not np.array_equal(before, after):
      leaves[path] = after
      wide = before.astype(np.float64)
      moved += float(np.sum((after - wide) ** 2))
      size += float(np.sum(wide**2))
  if not leaves:
    raise ValueError(f"{method}: the edit changes nothing")
  change = {"relative_change": float(np.sqrt(moved / size)) if size else 0.0}
  return Edit(
    None,
    Fingerprint.of(params),
    method,
    tuple(concepts),
    {**diagnostics, "changed_leaves": len(leaves), **change},
    leaves,
  )


def _map(edit: Edit) -> Float64[np.ndarray, "d d"]:
  if edit.context_map is None:
    raise ValueError(
      f"the {edit.method} edit changes weights, it is no map of text states; "
      "use apply_to_params"
    )
  return edit.context_map


def check_base(edit: Edit, params: Params):
  """Refuses parameters that the edit was not made from.

  Raises:
    ValueError: with both fingerprints.
  """
  remedy = "apply it to its base, or erase again from them"
  edit.base.check(params, f"the {edit.method} edit", remedy)


def apply_to_params(edit: Edit, params: Params) -> dict[str, Any]:
  """The edited model; every leaf that the edit leaves alone stays the same.

  Kernels are changed in float32 at full precision, whatever they are stored in,
  and cast back once; what narrower types lose of the change is told.

  Raises:
    ValueError: `params` are not the edit's base.
  """
  check_base(edit, params)
  if edit.context_map is None:
    leaves = traverse_util.flatten_dict(params, sep="/")
    return traverse_util.unflatten_dict({**leaves, **edit.leaves}, sep="/")
  leaves = traverse_util.flatten_dict(params["unet"], sep="/")
  change = (edit.context_map - np.eye(len(edit.context_map))).T
  change, kernels = change.astype(np.float32), cross_attention_kernels(params)
  leaves |= moved(change, kernels)
  narrow = {k: v for k, v in kernels.items() if v.dtype.itemsize < 4}
  if narrow:
    lost = float(np.sqrt(storage_error(change, narrow)))
    kinds = ", ".join(sorted({str(v.dtype) for v in narrow.values()}))
    warnings.warn(
      f"the {edit.method} edit is stored in {kinds}, which loses {lost:.2%} of "
      "its change; keep the edit's file, or the weights in float32",
      stacklevel=2,
    )
  return {**params, "unet": traverse_util.unflatten_dict(leaves, sep="/")}


def _step(change: Array, kernel: Array) -> Array:
  """(T - I)^T kernel in float32."""
  return jnp.matmul(change, kernel.astype(jnp.float32), precision=_HIGHEST)


@jax.jit
def moved(change: Array, kernels: dict[str, Array]) -> dict[str, Array]:
  """Kernels plus (T - I)^T kernel, in float32; `change` is (T - I)^T."""
  return jax.tree.map(
    lambda x: (x.astype(jnp.float32) + _step(change, x)).astype(x.dtype),
    kernels,
  )


@jax.jit
def storage_error(change: Array, kernels: dict[str, Array]) -> Array:
  """What rounding to the kernels' types takes from dW, |.|^2 / |dW|^2."""

  def squares(kernel: Array) -> Array:
    step = _step(change, kernel)
    exact = kernel.astype(jnp.float32) + step
    off = exact.astype(kernel.dtype).astype(jnp.float32) - exact
    return jnp.stack([jnp.sum(off**2), jnp.sum(step**2)])

  found = jnp.stack([squares(kernel) for kernel in kernels.values()]).sum(0)
  return found[0] / found[1]


def apply_to_context(
  edit: Edit, context: Float[Array, "*b l d"]
) -> Float[Array, "*b l d"]:
  """T c for every text state c: the base UNet then acts as the edited one.

  Raises:
    ValueError: the edit is no context map, or of another width.
  """
  context_map = _map(edit)
  if context.shape[-1] != len(context_map):
    raise ValueError(
      f"text states are {context.shape[-1]} wide, the edit {len(context_map)}"
    )
  change = (context_map - np.eye(len(context_map))).T
  wide = context.astype(jnp.float32)
  step = jnp.matmul(wide, change.astype(np.float32), precision=_HIGHEST)
  return (wide + step).astype(context.dtype)


def edit_hash(edit: Edit) -> str:
  """SHA-256 of what the edit does."""
  digest = hashlib.sha256()
  for name, value in sorted(edit.tensors.items()):
    digest.update(f"{name} {value.shape} {value.dtype}".encode())
    digest.update(value.tobytes())
  return digest.hexdigest()


def describe(concepts: Sequence[Concept]) -> list[dict[str, Any]]:
  """Concepts as plain JSON; `restore` reads it.

  A list to preserve is written once: further concepts that have it give the
  place of the first.
  """
  first: dict[tuple[str, ...], int] = {}
  rows = []
  for i, concept in enumerate(concepts):
    row = {
      f.name: getattr(concept, f.name) for f in dataclasses.fields(Concept)
    }
    if concept.preserve and first.setdefault(concept.preserve, i) < i:
      row["preserve"] = first[concept.preserve]
    rows.append(row)
  return rows


def restore(rows: Sequence[Mapping[str, Any]]) -> tuple[Concept, ...]:
  """The concepts that `describe` described."""
  concepts: list[Concept] = []
  for row in rows:
    preserve = row["preserve"]
    if isinstance(preserve, int):
      preserve = concepts[preserve].preserve
    concepts.append(Concept(**{**row, "preserve": preserve}))
  return tuple(concepts)


def save_edit(edit: Edit, path: str | pathlib.Path) -> None:
  """Writes the edit as safetensors: map or leaves; the rest as metadata."""
  metadata = {
    "format": FORMAT,
    "base": edit.base.digest,
    "method": edit.method,
    "concepts": json.dumps(describe(edit.concepts)),
    "diagnostics": json.dumps(dict(edit.diagnostics), allow_nan=False),
  }
  durable.save_tensors(path, edit.tensors, metadata)


def load_edit(path: str | pathlib.Path) -> Edit:
  """Reads an edit that `save_edit` wrote.

  Raises:
    ValueError: the file is no edit; a tensor is missing, extra, misshaped, not
      float64 or not finite; the metadata lacks a key.
  """
  tensors, metadata = durable.load_tensors(path, FORMAT)
  lacking = {"base", "method", "concepts", "diagnostics"} - set(metadata)
  if lacking or not tensors:
    raise ValueError(
      f"{path}: tensors {sorted(tensors)[:5]}; metadata lacking: "
      f"{sorted(lacking) or 'none'}"
    )
  context_map = tensors.pop("context_map", None)
  _check_tensors(path, context_map, tensors)
  return Edit(
    context_map,
    # A file says its kind by what it holds.
    Fingerprint("text" if tensors == {} else "model", metadata["base"]),
    metadata["method"],
    restore(json.loads(metadata["concepts"])),
    json.loads(metadata["diagnostics"]),
    tensors,
  )


def _check_tensors(
  path: str | pathlib.Path,
  context_map: np.ndarray | None,
  leaves: Mapping[str, np.ndarray],
):
  if context_map is None:
    return
  if leaves:
    extra = sorted(leaves)[:5]
    raise ValueError(f"{path}: a context map, and the extra tensors {extra}")
  shape, dtype = context_map.shape, context_map.dtype
  if len(shape) != 2 or shape[0] != shape[1] or dtype != np.float64:
    raise ValueError(
      f"{path}: context_map is {dtype} {shape}, not float64 (d, d)"
    )
