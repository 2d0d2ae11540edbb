"""The objective as additive sums over rows of text states, and its solution."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

# Above this, float64 keeps fewer than six digits of the change.
MAX_CONDITION = 1e10
MAX_SOLVE_ERROR = 1e-6

# C, C* and e of one concept: rows to erase, the rows that they shall act like,
# and their weight.
Pair = tuple[Float[np.ndarray, "_ d"], Float[np.ndarray, "_ d"], float]


@dataclasses.dataclass(frozen=True, eq=False)
class Sums:
  """The sums of text states that an edit depends on; they can be added.

  Attributes:
    gram: e C^T C + p Q^T Q.
    cross: D = e (C* - C)^T C.
    erased: rows of C.
    preserved: rows of Q.
  """

  gram: Float64[np.ndarray, "d d"]
  cross: Float64[np.ndarray, "d d"]
  erased: int = 0
  preserved: int = 0

  @classmethod
  def zero(cls, width: int) -> "Sums":
    """The sums of no rows, for text states `width` wide."""
    return cls(np.zeros((width, width)), np.zeros((width, width)))

  def __rmul__(self, scale: float) -> "Sums":
    return dataclasses.replace(
      self, gram=scale * self.gram, cross=scale * self.cross
    )

  def __add__(self, other: "Sums") -> "Sums":
    return Sums(
      self.gram + other.gram,
      self.cross + other.cross,
      self.erased + other.erased,
      self.preserved + other.preserved,
    )


def erase_sums(
  source: Float[np.ndarray, "n d"],
  target: Float[np.ndarray, "n d"],
  scale: float,
) -> Sums:
  """The sums of rows C, `source`, to act like C*, `target`; `scale` is e."""
  check_scales(erase_scale=scale)
  if source.shape != target.shape:
    raise ValueError(f"{source.shape} source rows, {target.shape} target rows")
  source, target = _float64(source, "source"), _float64(target, "target")
  return Sums(
    scale * (source.T @ source),
    scale * ((target - source).T @ source),
    erased=len(source),
  )


def preserve_sums(states: Float[np.ndarray, "n d"], scale: float) -> Sums:
  """The sums of rows Q, `states`, to preserve; `scale` is p."""
  check_scales(preserve_scale=scale)
  states = _float64(states, "preserved")
  gram = scale * (states.T @ states)
  return Sums(gram, np.zeros_like(gram), preserved=len(states))


def solve_spd(
  matrix: Float64[np.ndarray, "d d"],
  right: Float64[np.ndarray, "d n"],
  what: str,
) -> tuple[Float64[np.ndarray, "d n"], float]:
  """matrix^-1 right by Cholesky, and an estimate of the condition number.

  Raises:
    ValueError: the matrix is not positive definite, or its condition number
      is above `MAX_CONDITION`; the message begins with `what`.
  """
  import scipy.linalg

  try:
    # The transpose is the same matrix, in the memory layout of LAPACK.
    factor = scipy.linalg.cho_factor(matrix.T, lower=True)
  except np.linalg.LinAlgError as error:
    raise ValueError(f"{what}: {_describe(matrix)}") from error
  # pocon estimates the inverse of the condition number from the factor.
  (condition,) = scipy.linalg.get_lapack_funcs(("pocon",), (matrix,))
  inverse, info = condition(factor[0], np.abs(matrix).sum(0).max(), uplo="L")
  assert info == 0, info
  if inverse * MAX_CONDITION < 1:
    raise ValueError(
      f"{what}: condition number {1 / inverse if inverse else np.inf:.1e}, "
      f"allowed {MAX_CONDITION:.0e}; {_describe(matrix)}"
    )
  return scipy.linalg.cho_solve(factor, right), float(1 / inverse)


def solve(
  sums: Sums, lamb: float
) -> tuple[Float64[np.ndarray, "d d"], dict[str, float]]:
  """The context map T = I + D A^-1, and how well it was solved.

  Args:
    sums: of all rows of the edit.
    lamb: weight of |W' - W|^2, at least 0.

  Returns:
    T, exactly I where D is zero. The diagnostics `condition_number` of A;
    `solve_error`, |(T - I) A - D| / |D|; `map_change`, |T - I|. Norms are
    Frobenius norms.

  Raises:
    ValueError: `lamb` is negative or not finite; A is not positive definite,
      or too badly conditioned to solve.
  """
  check_scales(lamb=lamb)
  identity = np.eye(len(sums.gram))
  system = sums.gram + lamb * identity
  change, condition = solve_spd(system, sums.cross.T, f"lamb={lamb}")
  change = change.T
  off = change @ system - sums.cross
  found = _quality(lamb, condition, change, off, sums.cross)
  return identity + change, found


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
  """A context map as factors, I + left^T right, of one row per erased row.

  Attributes:
    left: C* - C.
    right: e C A^-1.
  """

  left: Float64[np.ndarray, "r d"]
  right: Float64[np.ndarray, "r d"]

  def after(
    self, matrix: Float64[np.ndarray, "n d"]
  ) -> Float64[np.ndarray, "n d"]:
    """The product of `matrix` and T."""
    return matrix + (matrix @ self.left.T) @ self.right


def solve_rows(
  pairs: Sequence[Pair], held: Sums, lamb: float
) -> tuple[Step, dict[str, float]]:
  """`solve` for fewer rows than dimensions: D A^-1 = (C* - C)^T (e C A^-1).

  This solves for r columns instead of d, and products with T cost r / d of
  those with the full matrix.

  Args:
    held: sums of all preserved rows, weighted.

  Returns:
    T as factors, and the diagnostics of `solve`.

  Raises:
    ValueError: as `solve`.
  """
  check_scales(lamb=lamb)
  sums = held
  for pair in pairs:
    sums += erase_sums(*pair)
  source, target, sizes = stacked(pairs)
  weight = np.repeat([float(pair[2]) for pair in pairs], sizes)[:, None]
  system = sums.gram + lamb * np.eye(len(sums.gram))
  right, condition = solve_spd(system, (weight * source).T, f"lamb={lamb}")
  step = Step(target - source, right.T)
  off = step.left.T @ (step.right @ system - weight * source)
  change = step.left.T @ step.right
  return step, _quality(lamb, condition, change, off, sums.cross)


def _quality(
  lamb: float,
  condition: float,
  change: Float64[np.ndarray, "d d"],
  off: Float64[np.ndarray, "d d"],
  cross: Float64[np.ndarray, "d d"],
) -> dict[str, float]:
  """The diagnostics of a solve; refuses a solve of too large an error."""
  size = np.linalg.norm(cross)
  # Where D is zero, the solution is exactly zero.
  error = float(np.linalg.norm(off) / size) if size else 0.0
  if not error <= MAX_SOLVE_ERROR:
    raise ValueError(f"lamb={lamb}: solve error {error:.1e}")
  return {
    "condition_number": condition,
    "solve_error": error,
    "map_change": float(np.linalg.norm(change)),
  }


def solve_pairs(
  pairs: Sequence[Pair], held: Sums, preserve_scale: float, lamb: float
) -> tuple[Float64[np.ndarray, "d d"], dict[str, Any]]:
  """The context map, by rows or by sums, whichever is cheaper.

  Args:
    held: sums of the preserved rows, each with weight 1.
    preserve_scale: p.

  Returns:
    T; the diagnostics of `solve`, the numbers of rows, p and the `residual`.

  Raises:
    ValueError: as `solve`.
  """
  check_scales(preserve_scale=preserve_scale)
  width, rows = len(held.gram), sum(len(source) for source, _, _ in pairs)
  if rows < width:
    step, diagnostics = solve_rows(pairs, preserve_scale * held, lamb)
    context_map = step.after(np.eye(width))
  else:
    sums = preserve_scale * held
    for pair in pairs:
      sums += erase_sums(*pair)
    context_map, diagnostics = solve(sums, lamb)
  return context_map, {
    **diagnostics,
    "erased_rows": rows,
    "preserved_rows": held.preserved,
    "preserve_scale": preserve_scale,
    "residual": residual(context_map, [pair[:2] for pair in pairs]),
  }


def residual(
  context_map: Float64[np.ndarray, "d d"],
  pairs: Iterable[tuple[Float[np.ndarray, "_ d"], Float[np.ndarray, "_ d"]]],
) -> float:
  """The share of the way from C to C* that T leaves, |C T^T - C*| / |C - C*|.

  It is 0 where C = C*.
  """
  left = whole = 0.0
  for source, target in pairs:
    source, target = _float64(source, "source"), _float64(target, "target")
    left += float(np.sum((source @ context_map.T - target) ** 2))
    whole += float(np.sum((source - target) ** 2))
  return float(np.sqrt(left / whole)) if whole else 0.0


def stacked(
  pairs: Sequence[Pair],
) -> tuple[Float64[np.ndarray, "r d"], Float64[np.ndarray, "r d"], list[int]]:
  """All C and all C* as one matrix each, and each pair's number of rows."""
  source, target = (
    np.concatenate([np.asarray(pair[i], np.float64) for pair in pairs])
    for i in (0, 1)
  )
  return source, target, [len(pair[0]) for pair in pairs]


def _float64(states: Any, what: str) -> Float64[np.ndarray, "n d"]:
  states = np.asarray(states, np.float64)
  if not np.isfinite(states).all():
    row = int(np.flatnonzero(~np.isfinite(states).all(-1))[0])
    raise ValueError(
      f"{what} text states hold NaN or infinity, first in {row=}"
    )
  return states


def check_scales(**scales: float) -> None:
  """Refuses a negative or non-finite weight and names it."""
  for name, value in scales.items():
    if not (np.isfinite(value) and value >= 0):
      raise ValueError(f"{name}={value}; allowed: finite numbers of at least 0")


def _describe(matrix: Float64[np.ndarray, "d d"]) -> str:
  low = np.linalg.eigvalsh(matrix)
  rank = int((low > low[-1] * len(low) * np.finfo(float).eps).sum())
  return (
    f"not safely positive definite: rank {rank} of {len(low)}, smallest "
    f"eigenvalue {low[0]:.2e}, largest {low[-1]:.2e}; a larger ridge helps"
  )
