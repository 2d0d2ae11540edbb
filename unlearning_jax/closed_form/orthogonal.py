"""UCE's technique "tensor": targets orthogonal to the erased value.

A projection W maps an erased phrase of states C to V = W C^T and its anchor of
states C* to V* = W C*^T. The target is the part of V* that is orthogonal to V,
each taken as one long vector:

  min_W'  e |W' C^T - (V* - a V)|^2 + p |(W' - W) Q^T|^2 + lamb |W' - W|^2 ,
  a = <V, V*> / |V|^2,
  W' = W + W (C* - (1 + a) C)^T e C A^-1,   A = lamb I + e C^T C + p Q^T Q .

A is that of `solve` and is factorized once. But a differs between projections,
so no single context map makes this edit.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from unlearning_jax.closed_form.solve import (
  Pair,
  Sums,
  check_scales,
  solve_rows,
  stacked,
)
from unlearning_jax.projections import Kernels


def solve_orthogonal(
  kernels: Kernels,
  pairs: Sequence[Pair],
  held: Sums,
  preserve_scale: float,
  lamb: float,
) -> tuple[dict[str, Float64[np.ndarray, "d o"]], dict[str, Any]]:
  """The projections of such an edit, and its diagnostics.

  Args:
    kernels: path -> W^T.
    pairs: (C, C*, e) of each erased phrase.
    held: sums of the preserved rows, each with weight 1.
    preserve_scale: p.

  Returns:
    The changed kernels, float64. Of the diagnostics, those of `solve` without
    `map_change`; `share`, the smallest and the largest a; `residual`,
    |W' C^T - V* + a V| / |(1 + a) V - V*|.

  Raises:
    ValueError: as `solve`; a projection maps an erased phrase to zero.
  """
  check_scales(preserve_scale=preserve_scale)
  step, diagnostics = solve_rows(pairs, preserve_scale * held, lamb)
  # The map is that of "replace"; only its right factor, e C A^-1, is used.
  del diagnostics["map_change"]
  source, target, sizes = stacked(pairs)
  changed, shares, left, whole = {}, [], 0.0, 0.0
  for path, kernel in kernels.items():
    wide = np.asarray(kernel, np.float64)
    value = source @ wide
    share = _shares(path, value, target @ wide, sizes)
    move = target @ wide - (1 + np.repeat(share, sizes)[:, None]) * value
    after = wide + step.right.T @ move
    changed[path] = after
    shares += [share.min(), share.max()]
    left += float(np.sum((source @ after - value - move) ** 2))
    whole += float(np.sum(move**2))
  return changed, {
    **diagnostics,
    "share": [float(min(shares)), float(max(shares))],
    "erased_rows": len(source),
    "preserved_rows": held.preserved,
    "preserve_scale": preserve_scale,
    "residual": float(np.sqrt(left / whole)) if whole else 0.0,
  }


def _shares(
  path: str,
  value: Float64[np.ndarray, "n o"],
  anchor: Float64[np.ndarray, "n o"],
  sizes: Sequence[int],
) -> Float64[np.ndarray, " m"]:
  """The number a of each phrase; `sizes` holds the phrases' numbers of rows."""
  starts = np.cumsum([0, *sizes[:-1]])
  size = np.add.reduceat((value**2).sum(1), starts)
  if not size.all():
    raise ValueError(
      f"unet/{path} maps erased phrase {int(np.argmin(size))} to zero, which "
      "has no direction to be orthogonal to; use technique='replace'"
    )
  return np.add.reduceat((value * anchor).sum(1), starts) / size
