"""What the options of a fine-tuning run may be."""

import math
from collections.abc import Callable
from typing import Any

# Option -> whether it may have a value, and what that would have to be. One
# that is None is left out.
_LIMITS: dict[str, tuple[Callable[[float], bool], str]] = {
  "optimizer.learning_rate": (lambda x: x >= 0, "at least 0"),
  # At 1 the rate would never be what it is meant to be.
  "optimizer.warmup": (
    lambda x: 0 <= x < 1,
    "the share of the steps that rise, from 0 to below 1",
  ),
  "optimizer.weight_decay": (lambda x: x >= 0, "at least 0"),
  "optimizer.clip_norm": (lambda x: x >= 0, "above 0, or 0 for no clipping"),
  "optimizer.b2": (lambda x: 0 <= x < 1, "from 0 to below 1"),
  "loss.snr_gamma": (lambda x: x > 0, "above 0; None weighs all steps alike"),
  "loss.caption_dropout": (lambda x: 0 <= x <= 1, "a share, from 0 to 1"),
  "ema_decay": (lambda x: 0 <= x <= 1, "up to 1, or 0 for no average"),
  "lora.rank": (lambda x: x >= 1, "at least 1"),
  "lora.alpha": (
    lambda x: x > 0,
    "above 0; None is the rank, for a scale of 1",
  ),
  "defence.k": (lambda x: x >= 1, "at least 1; None goes by defence.energy"),
  "defence.energy": (lambda x: 0 < x <= 1, "above 0, at most 1"),
  "defence.weight": (lambda x: x > 0, "above 0; defence.kind='none' is for 0"),
}


def check(config: Any):
  """Finds a number that would train nothing, or away from what is asked.

  Raises:
    ValueError: naming the key, its value, and what it must be.
  """
  for key, (fits, wanted) in _LIMITS.items():
    *group, name = key.split(".")
    value = (config[group[0]] if group else config)[name]
    if value is not None and not (math.isfinite(value) and fits(value)):
      raise ValueError(f"{key}={value}: must be {wanted}")
