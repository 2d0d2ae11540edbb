"""What an erasure changed: applied to weights or to text states, kept in files.

A closed form changes what all text projections read alike, so its edit is one
context map. The edit of every other erasure is the leaves that it changed.
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

from unlearning_jax import durable, settings
from unlearning_jax.concepts import Concept
from unlearning_jax.convert import families
from unlearning_jax.projections import (
  Fingerprint,
  Params,
  cross_attention_kernels,
  leaves_of,
  with_unet,
)

# Frobenius norm of T - I below which float32 kernels hardly move.
MIN_CHANGE = 1e-6
FORMAT = families.EDIT_FORMAT
_HIGHEST = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True, eq=False)
class Edit:
  """What an erasure changed, and nothing else: a context map, or leaves.

  Attributes:
    context_map: T of W' = W T, for every key and value projection W of the
      cross-attention; None for an edit of leaves.
    base: fingerprint of the model it was made from, of kind "text" for a
      context map and "model" for leaves.
    method: name of method or preset, as "uce2023".
    concepts: what was erased.
    diagnostics: numbers on the solve and on the change, plain JSON values.
    leaves: path (`unet/...`, `text_encoder/...`) -> the leaf's new value; {}
      for a context map.
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
    """What its file holds: `context_map`, or the leaves by path."""
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
  """The edit of `params` by a context map T that was computed from them.

  Adds the diagnostic `relative_change`: |W' - W| / |W| over all projections.

  Args:
    gram: S, the `projection_gram` of `params`.

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
  # The sum of |W (T - I)|^2 is the trace of (T - I)^T S (T - I).
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
  """The edit that turns `params` into `edited`: every leaf that differs.

  Adds the diagnostics `changed_leaves` and `relative_change`, which is
  |new - old| / |old| over these leaves.

  Raises:
    ValueError: a leaf is missing, extra, misshaped or not finite; nothing
      differs.
  """
  old, new = leaves_of(params), leaves_of(edited)
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


def check_base(edit: Edit, params: Params):
  """Refuses parameters that the edit was not made from.

  Raises:
    ValueError: names both fingerprints.
  """
  remedy = "apply it to its base, or erase again from them"
  edit.base.check(params, f"the {edit.method} edit", remedy)


def apply_to_params(edit: Edit, params: Params) -> dict[str, Any]:
  """The edited model; leaves that the edit does not change are the same arrays.

  A context map changes kernels in float32 at full precision, whatever their
  dtype, and casts them back once. A warning reports how much of the change
  dtypes narrower than float32 lose.

  Raises:
    ValueError: `params` are not the edit's base; a leaf has no place in them,
      or another shape; the edit is too large for float32.
  """
  check_base(edit, params)
  if edit.context_map is None:
    leaves = leaves_of(params)
    _check_leaves(edit, leaves)
    leaves |= dict(edit.leaves)
    return traverse_util.unflatten_dict(leaves, sep="/")
  change = (edit.context_map - np.eye(len(edit.context_map))).T
  kernels = cross_attention_kernels(params)
  wide = {name: len(leaf) for name, leaf in kernels.items()}
  if {*wide.values()} != {len(change)}:
    raise ValueError(
      f"the {edit.method} edit maps {len(change)} dimensions of the text, the "
      f"model reads {sorted({*wide.values()})}"
    )
  change = _narrowed(change, f"the {edit.method} edit")
  narrow = {k: v for k, v in kernels.items() if v.dtype.itemsize < 4}
  if narrow:
    lost = float(np.sqrt(storage_error(change, narrow)))
    kinds = ", ".join(sorted({str(v.dtype) for v in narrow.values()}))
    warnings.warn(
      f"the {edit.method} edit is stored in {kinds}, which loses {lost:.2%} of "
      "its change; keep the edit's file, or the weights in float32",
      stacklevel=2,
    )
  return with_unet(params, moved(change, kernels))


def _narrowed(change: np.ndarray, what: str) -> np.ndarray:
  """A map in float32; an error where that cannot hold it begins with `what`."""
  with np.errstate(over="ignore"):
    narrow = change.astype(np.float32)
  if not np.isfinite(narrow).all():
    raise ValueError(f"{what} is too large for float32")
  return narrow


def _check_leaves(edit: Edit, leaves: Mapping[str, Any]):
  for name, leaf in edit.leaves.items():
    if name not in leaves:
      raise ValueError(f"the {edit.method} edit: the model has no {name!r}")
    if leaf.shape != leaves[name].shape:
      raise ValueError(
        f"the {edit.method} edit: {name!r} is {leaf.shape}, the model's is "
        f"{leaves[name].shape}"
      )


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
  """|rounding to the kernels' dtypes|^2 / |change|^2, over all kernels."""

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
    ValueError: the edit is not a context map, or has another width.
  """
  context_map = edit.context_map
  if context_map is None:
    raise ValueError(
      f"the {edit.method} edit changes weights and is not a map of text states;"
      " use apply_to_params"
    )
  if context.shape[-1] != len(context_map):
    raise ValueError(
      f"text states are {context.shape[-1]} wide, the edit {len(context_map)}"
    )
  change = (context_map - np.eye(len(context_map))).T
  wide = context.astype(jnp.float32)
  narrow = _narrowed(change, f"the {edit.method} edit")
  step = jnp.matmul(wide, narrow, precision=_HIGHEST)
  return (wide + step).astype(context.dtype)


def edit_hash(edit: Edit) -> str:
  """SHA-256 of the tensors of the edit: names, shapes, dtypes and bytes."""
  digest = hashlib.sha256()
  for name, value in sorted(edit.tensors.items()):
    digest.update(f"{name} {value.shape} {value.dtype}".encode())
    digest.update(value.tobytes())
  return digest.hexdigest()


def describe(concepts: Sequence[Concept]) -> list[dict[str, Any]]:
  """Concepts as plain JSON, which `restore` reads.

  A preserve list is written once; a later concept with the same list holds the
  index of the first.
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


def restore(
  rows: Sequence[Mapping[str, Any]], where: str = "concepts"
) -> tuple[Concept, ...]:
  """The concepts that `describe` wrote.

  Args:
    where: the file, for messages.

  Raises:
    ValueError: a row is none of a concept.
  """
  concepts: list[Concept] = []
  try:
    for i, row in enumerate(rows):
      preserve = row["preserve"]
      if isinstance(preserve, int):
        preserve = concepts[preserve].preserve
      values = {**row, "preserve": preserve}
      concepts.append(settings.build(Concept, values, f"concepts[{i}]"))
  except (TypeError, LookupError, ValueError) as error:
    raise ValueError(f"{where}: are no concepts: {error}") from error
  return tuple(concepts)


def header(edit: Edit) -> dict[str, str]:
  """What the header of an edit's or an edited model's file says of it."""
  return {
    "base": edit.base.digest,
    "method": edit.method,
    "concepts": json.dumps(describe(edit.concepts)),
    "diagnostics": json.dumps(dict(edit.diagnostics), allow_nan=False),
  }


def save_edit(edit: Edit, path: str | pathlib.Path) -> None:
  """Writes the edit as safetensors: map or leaves; the rest as metadata."""
  durable.save_tensors(path, edit.tensors, {"format": FORMAT} | header(edit))


def load_edit(path: str | pathlib.Path) -> Edit:
  """Reads an edit that `save_edit` wrote.

  Raises:
    durable.DamagedError: the file is damaged or cannot be read.
    ValueError: the file is not an edit; a tensor is missing, extra, misshaped
      or not finite; a context map is not float64; the metadata lacks a key.
  """
  kind = families.of_file(path)
  if kind.name not in ("edit", "unknown"):
    way = kind.use
    if kind.read:
      way = families.filled(
        f"make it one: {families.TO_EDIT}; or attack it as it is: "
        "--config.victim=FILE",
        path,
      )
    raise ValueError(
      f"{path}: is {kind.text}, and no edit of this package; {way}"
    )
  tensors, metadata = durable.load_tensors(path, FORMAT)
  lacking = {"base", "method", "concepts", "diagnostics"} - set(metadata)
  if lacking or not tensors:
    raise ValueError(
      f"{path}: tensors {sorted(tensors)[:5]}; metadata lacking: "
      f"{sorted(lacking) or 'none'}"
    )
  context_map = tensors.pop("context_map", None)
  if context_map is not None:
    if tensors:
      extra = sorted(tensors)[:5]
      raise ValueError(f"{path}: a context map, and the extra tensors {extra}")
    shape, dtype = context_map.shape, context_map.dtype
    if len(shape) != 2 or shape[0] != shape[1] or dtype != np.float64:
      raise ValueError(
        f"{path}: context_map is {dtype} {shape}, not float64 (d, d)"
      )
    _narrowed(context_map, f"{path}: context_map")
  rows = durable.from_json(metadata["concepts"], f"{path}: concepts", list)
  where = f"{path}: diagnostics"
  return Edit(
    context_map,
    # The file does not say the fingerprint's kind; what it holds does.
    Fingerprint("text" if tensors == {} else "model", metadata["base"]),
    metadata["method"],
    restore(rows, f"{path}: concepts"),
    durable.from_json(metadata["diagnostics"], where),
    tensors,
  )
