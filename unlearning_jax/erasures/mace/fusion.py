"""MACE's two closed forms and their statistics; `mace` has the equations."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from unlearning_jax import closed_form, durable
from unlearning_jax.closed_form import Sums
from unlearning_jax.concepts import check_choice, same_phrase
from unlearning_jax.edits import Fingerprint
from unlearning_jax.lora import Adapters
from unlearning_jax.projections import (
  cross_attention_kernels,
  with_kernels,
)
from unlearning_jax.stable_diffusion import Params

Kernels = dict[str, Float64[np.ndarray, "d o"]]
STATISTICS = "unlearning_jax mace 1"


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
  """One concept's share of both objectives, independent of other concepts.

  Attributes:
    name: the concept's phrase.
    sums: the refinement's sums; zero for an adapter from another source.
    gram: G = sum of e e^T over all tokens of the concept's prompts.
    adapters: dW of key and value projections, as factors `down` and `up`.
    weight: multiplies all the concept's terms.
  """

  name: str
  sums: Sums
  gram: Float64[np.ndarray, "d d"]
  adapters: Adapters
  weight: float = 1.0


def refine(
  kernels: Mapping[str, Any], sums: Sums, lamb: float
) -> tuple[Kernels, dict[str, float]]:
  """W' = W (I + X M^-1) for every kernel (eq. 2).

  Args:
    kernels: W^T by path.
    sums: X, and M without its ridge.
    lamb: the ridge.

  Returns:
    The refined kernels in float64, and the diagnostics of `closed_form.solve`.

  Raises:
    ValueError: M is not positive definite or too badly conditioned.
  """
  context_map, diagnostics = closed_form.solve(sums, lamb)
  # X M^-1 without I, transposed as kernels are.
  change = (context_map - np.eye(len(context_map))).T
  refined = {}
  for path, kernel in kernels.items():
    kernel = np.asarray(kernel, np.float64)
    refined[path] = kernel + change @ kernel
  return refined, diagnostics


def fuse(
  base: Mapping[str, Any],
  refined: Mapping[str, Any],
  parts: Sequence[Part],
  prior: Float64[np.ndarray, "d d"],
  lamb: float,
) -> tuple[Kernels, dict[str, float]]:
  """W* = W' + [sum_i dW_i G_i + s (W - W') C] (sum_i G_i + s C + lamb I)^-1.

  This solves eq. 7. It is no context map, because dW_i differs between layers.

  Args:
    base: W^T by path.
    refined: W'^T by path, which the adapters were trained on.
    parts: each concept's dW_i, G_i and weight.
    prior: s C.
    lamb: the ridge.

  Returns:
    The fused kernels in float64; `condition_number` and `solve_error`.

  Raises:
    ValueError: the system is not positive definite or too badly conditioned.
  """
  system = prior + lamb * np.eye(len(prior))
  right = {
    path: prior @ (np.asarray(base[path], np.float64) - refined[path])
    for path in refined
  }
  for part in parts:
    system = system + part.weight * part.gram
    for path, factors in part.adapters.items():
      down, up = (np.asarray(factors[n], np.float64) for n in ("down", "up"))
      right[path] += part.weight * (part.gram @ down) @ up
  # All layers share the system, so one factorization solves for all of them.
  stacked = np.concatenate(list(right.values()), axis=1)
  change, condition = closed_form.solve_spd(
    system, stacked, f"fusion with lamb={lamb}"
  )
  size = np.linalg.norm(stacked)
  error = np.linalg.norm(system @ change - stacked) / size if size else 0.0
  ends = np.cumsum([kernel.shape[1] for kernel in right.values()])[:-1]
  changes = zip(right, np.split(change, ends, axis=1), strict=True)
  return {path: refined[path] + step for path, step in changes}, {
    "condition_number": condition,
    "solve_error": float(error),
  }


def add_mean(
  refined: Mapping[str, Any], parts: Sequence[Part]
) -> tuple[Kernels, dict[str, float]]:
  """W' + sum_i w_i dW_i, with weights that sum to one (eq. 6).

  This is the paper's baseline. Here each adapter acts on every prompt, not only
  on its own concept's.

  Raises:
    ValueError: all weights are 0.
  """
  total = sum(part.weight for part in parts)
  if not total:
    raise ValueError(
      "fusion='mean': all weights are 0; give at least one above 0"
    )
  fused = {path: np.asarray(leaf, np.float64) for path, leaf in refined.items()}
  for part in parts:
    for path, factors in part.adapters.items():
      down, up = (np.asarray(factors[n], np.float64) for n in ("down", "up"))
      fused[path] = fused[path] + part.weight / total * down @ up
  return fused, {}


FUSIONS = ("closed_form", "mean")


@dataclasses.dataclass(frozen=True, eq=False)
class Fusion:
  """The sufficient statistics of a MACE erasure, concept by concept.

  To add, drop or re-weight a concept takes one re-solve and no training; it
  equals a new solve with the same adapters. Two things stay from the first run:
  its adapters were trained on the refinement of its concepts, and its captions
  weigh as much as its concepts' rows.

  Attributes:
    base: the base's fingerprint.
    parts: the concepts.
    prior: C.
    refine_scale: s of the refinement.
    fuse_scale: s of the fusion.
    lamb: ridge of both.
  """

  base: str
  parts: tuple[Part, ...]
  prior: Float64[np.ndarray, "d d"]
  refine_scale: float
  fuse_scale: float
  lamb: float

  def __post_init__(self):
    closed_form.check_scales(
      preserve_scale=self.refine_scale,
      fuse_scale=self.fuse_scale,
      lamb=self.lamb,
      **{f"weight of {p.name!r}": p.weight for p in self.parts},
    )
    names = [same_phrase(part.name) for part in self.parts]
    for name in names:
      if names.count(name) > 1:
        raise ValueError(f"concept {name!r} is there twice; drop one")

  def drop(self, name: str) -> "Fusion":
    """The statistics without a concept; ValueError if it is unknown."""
    kept = self._others(name)
    return dataclasses.replace(self, parts=kept)

  def reweight(self, name: str, weight: float) -> "Fusion":
    """The statistics with another weight for a concept; 0 leaves it out."""
    kept = self._others(name)
    (part,) = (p for p in self.parts if p not in kept)
    part = dataclasses.replace(part, weight=weight)
    return dataclasses.replace(self, parts=(*kept, part))

  def _others(self, name: str) -> tuple[Part, ...]:
    names = [same_phrase(part.name) for part in self.parts]
    check_choice("concept", same_phrase(name), names)
    there = zip(self.parts, names, strict=True)
    return tuple(part for part, known in there if known != same_phrase(name))

  def refine(self, params: Params) -> tuple[Kernels, dict[str, float]]:
    """W' of `params`, the base, with diagnostics; see `mace.fusion.refine`."""
    kernels = cross_attention_kernels(params)
    prior = Sums(self.prior, np.zeros_like(self.prior))
    sums = self.refine_scale * prior
    for part in self.parts:
      sums += part.weight * part.sums
    # With adapters from other sources alone there is nothing to refine.
    if not any(part.sums.erased for part in self.parts):
      return {k: np.asarray(v, np.float64) for k, v in kernels.items()}, {}
    return refine(kernels, sums, self.lamb)

  def solve(
    self, params: Params, how: str = "closed_form"
  ) -> tuple[dict[str, Any], dict[str, Any]]:
    """Solves for W*; all other leaves stay the same arrays.

    Args:
      params: the base.
      how: a name in `FUSIONS`.

    Returns:
      The erased parameters, and diagnostics of both solves.

    Raises:
      ValueError: `params` are another model, an adapter does not fit, or a
        system is not positive definite.
    """
    check_choice("fusion", how, FUSIONS)
    Fingerprint("text", self.base).check(
      params, "the set of adapters", "use its base"
    )
    kernels = cross_attention_kernels(params)
    for part in self.parts:
      check_adapters(part, kernels)
    if not self.parts:
      return dict(params), {}
    refined, first = self.refine(params)
    prior = self.fuse_scale * self.prior
    if how == "mean":
      fused, second = add_mean(refined, self.parts)
    else:
      fused, second = fuse(kernels, refined, self.parts, prior, self.lamb)
    moved = sum(
      np.sum((fused[k] - np.float64(v)) ** 2) for k, v in kernels.items()
    )
    whole = sum(np.sum(np.float64(v) ** 2) for v in kernels.values())
    return with_kernels(params, fused), {
      "refinement": first,
      "fusion": second,
      "relative_change": float(np.sqrt(moved / whole)),
    }

  def save(self, path: str | pathlib.Path) -> None:
    """Writes a safetensors file with names and numbers as metadata."""
    tensors, parts = {"prior": self.prior}, []
    for i, part in enumerate(self.parts):
      sums = part.sums
      parts.append([part.name, part.weight, sums.erased, sums.preserved])
      arrays = {"gram": part.gram, "sums": sums.gram, "cross": sums.cross}
      for kernel, factors in part.adapters.items():
        arrays |= {f"{kernel}:{name}": leaf for name, leaf in factors.items()}
      tensors |= {f"{i}:{name}": leaf for name, leaf in arrays.items()}
    numbers = {
      name: getattr(self, name)
      for name in ("base", "refine_scale", "fuse_scale", "lamb")
    }
    metadata = {
      "format": STATISTICS,
      "fusion": json.dumps({**numbers, "parts": parts}, allow_nan=False),
    }
    plain = {name: np.asarray(leaf) for name, leaf in tensors.items()}
    durable.save_tensors(path, plain, metadata)


def check_adapters(part: Part, kernels: Mapping[str, Any]) -> None:
  """Checks that adapters can be fused into `kernels`.

  Raises:
    ValueError: an adapter belongs to no text projection, does not have the
      kernel's shape, has a rank above its sides, or is not finite.
  """
  for path, factors in part.adapters.items():
    check_choice(f"adapter of {part.name!r}", path, kernels)
    down, up = np.asarray(factors["down"]), np.asarray(factors["up"])
    shape = tuple(kernels[path].shape)
    made = (down.shape[0], up.shape[1])
    if made != shape or down.shape[1] != up.shape[0]:
      raise ValueError(
        f"adapter of {part.name!r} at unet/{path}: down {down.shape} and up "
        f"{up.shape} do not make a kernel of shape {shape}"
      )
    if down.shape[1] > min(shape):
      raise ValueError(
        f"adapter of {part.name!r} at unet/{path}: rank {down.shape[1]} "
        f"exceeds the kernel's smaller side; its shape is {shape}"
      )
    if not (np.isfinite(down).all() and np.isfinite(up).all()):
      raise ValueError(
        f"adapter of {part.name!r} at unet/{path} holds NaN or infinity"
      )


def load_fusion(path: str | pathlib.Path) -> Fusion:
  """Reads a file of `Fusion.save`.

  Raises:
    ValueError: another kind of file, or a tensor that is missing, extra or not
      finite.
  """
  tensors, metadata = durable.load_tensors(path, STATISTICS)
  numbers = json.loads(metadata["fusion"])
  try:
    prior, parts = tensors.pop("prior"), []
    for i, (name, weight, erased, preserved) in enumerate(numbers.pop("parts")):
      gram, sums, cross = (
        tensors.pop(f"{i}:{which}") for which in ("gram", "sums", "cross")
      )
      adapters: dict[str, dict[str, Any]] = {}
      for key in [key for key in tensors if key.startswith(f"{i}:")]:
        _, kernel, factor = key.split(":")
        adapters.setdefault(kernel, {})[factor] = tensors.pop(key)
      statistics = Sums(sums, cross, erased, preserved)
      parts.append(Part(name, statistics, gram, adapters, weight))
  except KeyError as error:
    raise ValueError(f"{path}: the tensor {error} is missing") from error
  if tensors:
    raise ValueError(f"{path}: unknown tensors: {sorted(tensors)[:5]}")
  return Fusion(parts=tuple(parts), prior=prior, **numbers)
