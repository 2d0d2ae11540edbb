"""One number for an erasure: gone, and nothing else with it."""

import math


def harmonic(
  erased: float, kept: float, synonyms: float | None = None
) -> float:
  """MACE's harmonic mean of efficacy, specificity and generality.

    H_c = 2 / (1 / (1 - erased) + 1 / kept)
    H_o = 3 / (1 / (1 - erased) + 1 / kept + 1 / (1 - synonyms))

  Args:
    erased: accuracy on the erased concepts, 0 to 1.
    kept: accuracy on all others.
    synonyms: accuracy on other words for the erased; None leaves it out.

  Returns:
    0 (one of them failed) to 1.

  Raises:
    ValueError: a rate is not from 0 to 1.
  """
  rates = {"erased": erased, "kept": kept, "synonyms": synonyms or 0.0}
  for name, rate in rates.items():
    if not (math.isfinite(rate) and 0 <= rate <= 1):
      raise ValueError(f"{name}={rate}; allowed: 0 to 1")
  parts = [1 - erased, kept]
  if synonyms is not None:
    parts.append(1 - synonyms)
  return len(parts) / sum(1 / part for part in parts) if all(parts) else 0.0
