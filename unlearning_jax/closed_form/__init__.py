"""Closed-form edits of cross-attention: one linear map of the text states.

All key and value projections W of a UNet read the same text states. Let the
rows of C be the states to erase, those of C* the states that they shall act
like, and those of Q the states to preserve. UCE and RECE solve for every W

  min_W'  e |(W' C^T - W C*^T)|^2 + p |(W' - W) Q^T|^2 + lamb |W' - W|^2 .

The targets are outputs of W itself, so the solution is one context map T, the
same for every projection:

  W' = W T,   T = I + D A^-1,
  A = lamb I + e C^T C + p Q^T Q,   D = e (C* - C)^T C .

In Flax a kernel is W^T, so kernel' = T^T kernel. Since W' c = W (T c), the text
states can be mapped instead of the weights. Sums and solves are in float64 on
the host and solve for the change T - I: the condition number of A is 1e5 or
more, and a float32 inverse of A would lose percents of the change.
"""

from unlearning_jax.closed_form.orthogonal import (
  solve_orthogonal as solve_orthogonal,
)
from unlearning_jax.closed_form.solve import Sums as Sums
from unlearning_jax.closed_form.solve import check_scales as check_scales
from unlearning_jax.closed_form.solve import erase_sums as erase_sums
from unlearning_jax.closed_form.solve import preserve_sums as preserve_sums
from unlearning_jax.closed_form.solve import residual as residual
from unlearning_jax.closed_form.solve import solve as solve
from unlearning_jax.closed_form.solve import solve_pairs as solve_pairs
from unlearning_jax.closed_form.solve import solve_rows as solve_rows
from unlearning_jax.closed_form.solve import solve_spd as solve_spd
