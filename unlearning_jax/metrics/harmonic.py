"""One number for an erasure: the concept is gone, and nothing else is."""

import math


def harmonic(
  erased: float, kept: float, synonyms: float | None = None
) -> float:
  """MACE's harmonic mean of efficacy, specificity and generality.

  With the accuracies Acc_e (`erased`), Acc_s (`kept`) and Acc_g (`synonyms`):

    H_c = 2 / (1 / (1 - Acc_e) + 1 / Acc_s)
    H_o = 3 / (1 / (1 - Acc_e) + 1 / Acc_s + 1 / (1 - Acc_g))

  Args:
    erased: accuracy on the erased concepts, 0 to 1.
    kept: accuracy on all other concepts, 0 to 1.
    synonyms: accuracy on synonyms of the erased ones, 0 to 1; None for H_c.

  Returns:
    0 to 1; 0 if one of the parts is 0.

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
