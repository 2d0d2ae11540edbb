"""Text states that bring a concept back through edited projections, exactly.

With base projections W, edited ones W P and S = sum of W^T W, RECE asks for

  min_C'  sum |W P C'^T - W C^T|^2 + R(C'),   C'^T = M^-1 N C^T + ... .

Its release has five regularizers R, with lam = lam_r; the first is the paper's:

  zero         lam |C'|^2                       M = P^T S P + lam I, N = P^T S
  standard     lam |C' - C*|^2                  the same, + lam M^-1 C*^T
  surrogate_1  lam sum |W P (C' - C)^T|^2       M = (1 + lam) P^T S P,
                                                N = P^T S + lam P^T S P
  surrogate_2  lam |C' - C|^2                   M as zero, N = P^T S + lam I
  both         both surrogates
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Float64

from unlearning_jax.closed_form.solve import Step, solve_spd
from unlearning_jax.concepts import check_choice

REGULARIZERS = ("zero", "standard", "surrogate_1", "surrogate_2", "both")


@dataclasses.dataclass(frozen=True, eq=False)
class Products:
  """The products of base and edited projections that a derivation reads.

  Attributes:
    cross: P^T S.
    seen: P^T S P.
  """

  cross: Float64[np.ndarray, "d d"]
  seen: Float64[np.ndarray, "d d"]

  @classmethod
  def of(
    cls, gram: Float64[np.ndarray, "d d"], reached: Float64[np.ndarray, "d d"]
  ) -> "Products":
    """The products of S, `gram`, and P, `reached`."""
    cross = reached.T @ gram
    seen = cross @ reached
    # Rounding alone makes it asymmetric.
    return cls(cross, (seen + seen.T) / 2)

  def after(self, step: Step) -> "Products":
    """The products of P T, T = I + L^T R, at the cost of r rows, not d."""
    left, right = step.left, step.right
    cross = self.cross + right.T @ (left @ self.cross)
    # T^T M T = M + R^T H + H^T R for H = L M + (L M L^T) R / 2.
    half = left @ self.seen
    half += (half @ left.T) @ right / 2
    change = right.T @ half
    return Products(cross, self.seen + (change + change.T))


def derive_from(
  products: Products,
  states: Float[np.ndarray, "n d"],
  lam_r: float,
  regularizer: str = "zero",
  anchors: Float[np.ndarray, "n d"] | None = None,
) -> Float64[np.ndarray, "n d"]:
  """The states C' whose edited projections are nearest to what C's were.

  Args:
    states: C, the concept's rows.
    lam_r: weight of the regularizer, in units of S where it is a norm of C'.
    regularizer: one of `REGULARIZERS`.
    anchors: C*, for "standard".

  Raises:
    ValueError: lam_r is not positive; the regularizer is unknown, or lacks its
      anchors; the system is not positive definite.
  """
  if not (np.isfinite(lam_r) and lam_r > 0):
    raise ValueError(f"lam_r={lam_r}; allowed: finite numbers above 0")
  check_choice("regularizer", regularizer, REGULARIZERS)
  states = np.asarray(states, np.float64)
  cross, seen = products.cross, products.seen
  ridge = lam_r * np.eye(len(seen))
  system = seen + (0 if regularizer == "surrogate_1" else ridge)
  if regularizer in ("surrogate_1", "both"):
    system, cross = system + lam_r * seen, cross + lam_r * seen
  if regularizer in ("surrogate_2", "both"):
    cross = cross + ridge
  right = cross @ states.T
  if regularizer == "standard":
    if anchors is None:
      raise ValueError("regularizer='standard' needs the anchors' states")
    right += lam_r * np.asarray(anchors, np.float64).T
  return solve_spd(system, right, f"lam_r={lam_r}")[0].T
