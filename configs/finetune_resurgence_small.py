"""Concept resurgence in ten minutes: does an erased star come back?

  python -m launch.resurgence --workdir=runs/resurgence \
    --config=configs/finetune_resurgence_small.py

Three erasures of the star, tuned on pictures of its four nearest objects and
on portraits, all weights and low-rank adapters. 30 images a point: intervals
are wide, the full study's are not. Metric: R_norm with its interval.
"""

from configs import resurgence

_COUNTS = {"explicit": 30, "words": 15, "others": 30, "tuned": 15}


def get_config():
  block = {
    "methods": ("uce", "esd_x", "esd_u"),
    "concepts": ("star",),
    "sets": ("near", "out"),
    "algorithms": ("full", "lora"),
    "defences": ("none",),
    "seeds": (0,),
  }
  config = resurgence.study([block], steps=(10, 50), counts=_COUNTS)
  # What divides the prompts of one measurement, 105.
  config.batch_size = 35
  for tuning in config.algorithms.values():
    tuning.batch_size = 32
  return config
