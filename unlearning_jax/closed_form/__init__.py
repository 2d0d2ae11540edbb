"""Closed-form edits of cross-attention: one linear map of the text states.

All key and value projections W of a UNet read the same text states. Let C hold
the erased states as rows, C* what each of them shall mean, Q the states to
preserve. UCE and RECE ask of every projection

  min_W'  e |(W' C^T - W C*^T)|^2 + p |(W' - W) Q^T|^2 + lamb |W' - W|^2 .

The targets are the projection's own outputs, so the answer is one context map
T that no projection enters:

  W' = W T,   T = I + D A^-1,
  A = lamb I + e C^T C + p Q^T Q,   D = e (C* - C)^T C .

In Flax a kernel is W^T, so kernel' = T^T kernel; and W' c = W (T c): the text
states can be mapped instead of the weights. Sums and solves are float64 on the
host, and always for the change T - I: a float32 inverse of A, whose condition
number is 1e5 or more, loses percents of it.
"""

from unlearning_jax.closed_form.orthogonal import solve_orthogonal
from unlearning_jax.closed_form.solve import (
  Step,
  Sums,
  check_scales,
  erase_sums,
  preserve_sums,
  residual,
  solve,
  solve_pairs,
  solve_rows,
  solve_spd,
)

__all__ = [
  "Step",
  "Sums",
  "check_scales",
  "erase_sums",
  "preserve_sums",
  "residual",
  "solve",
  "solve_orthogonal",
  "solve_pairs",
  "solve_rows",
  "solve_spd",
]
