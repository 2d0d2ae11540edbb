"""Concept resurgence in ten minutes: does an erased star come back?

  python -m launch.resurgence --workdir=runs/resurgence \
    --config=configs/finetune_resurgence_small.py
"""

from configs import resurgence


def get_config():
  block = {
    "methods": ("uce", "esd_x", "esd_u"),
    "concepts": ("star",),
    "sets": ("near", "out"),
    "algorithms": ("full", "lora"),
    "defences": ("none",),
    "seeds": (0,),
  }
  return resurgence.study(
    [block],
    steps=(10, 50),
    counts={"explicit": 30, "words": 15, "others": 30, "tuned": 15},
  )
