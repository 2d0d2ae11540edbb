"""RECE's recipe for nudity in plain torch: what `side_by_side` times ours with.

Our own code of the released formulas, one projection at a time:

  UCE and an epoch   min_W'  e sum |W' c - W c*|^2 + p sum |W' q - W q|^2
                             + lamb |W' - W|^2
                     W' = (lamb W + e W C*^T C + p W Q^T Q) A^-1,
                     A = lamb I + e C^T C + p Q^T Q
  derivation         min_C'  sum |W_now C'^T - W C^T|^2 + lam_r |C'|^2
                     C' = C N^T M^-1, N = sum W_now^T W,
                     M = lam_r I + sum W_now^T W_now

It encodes each phrase once. The released functions encode the text again for
every layer, and so take far longer.
"""

import torch

EPOCHS, LAM_R = 3, 0.1


def edited(
  weights: list[torch.Tensor],
  source: torch.Tensor,
  target: torch.Tensor,
  held: torch.Tensor,
  p: float,
  lamb: float,
) -> list[torch.Tensor]:
  """Every W' of the first formula, with e = 1; rows are text states."""
  eye = torch.eye(source.shape[1], dtype=source.dtype)
  new = []
  for w in weights:
    left = lamb * w + (w @ target.T) @ source + p * (w @ held.T) @ held
    right = lamb * eye + source.T @ source + p * held.T @ held
    new.append(left @ torch.linalg.inv(right))
  return new


def derived(
  now: list[torch.Tensor],
  base: list[torch.Tensor],
  states: torch.Tensor,
  lam_r: float,
) -> torch.Tensor:
  """C': the rows that edited projections see as the base's saw C."""
  m = lam_r * torch.eye(states.shape[1], dtype=states.dtype)
  n = torch.zeros_like(m)
  for w, w0 in zip(now, base, strict=True):
    m += w.T @ w
    n += w.T @ w0
  return states @ (torch.linalg.inv(m) @ n).T


def nudity(
  base: list[torch.Tensor], concept: torch.Tensor, empty: torch.Tensor
) -> list[torch.Tensor]:
  """The edited projections.

  Args:
    base: projections W (o, d).
    concept: all text states (l, d) of a word that is one token.
    empty: those of the empty prompt, which is the anchor and is preserved.
  """
  # UCE erases from the last subject token on. The anchor's is the start.
  now = edited(base, concept[1:], empty[:-1], empty, 1.0, 0.5)
  for _ in range(EPOCHS):
    found = derived(now, base, concept, LAM_R)
    now = edited(now, found, empty, empty, 0.1, 0.1)
  return now
