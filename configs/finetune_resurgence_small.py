"""Concept resurgence in short: does an erased star come back?

  python -m launch.resurgence --workdir=runs/resurgence \
    --config=configs/finetune_resurgence_small.py

Three erasures of the star are tuned on portraits, and on pictures of the four
nearest objects: all weights, or low-rank adapters. One of them is also tuned
with projected updates. A point has 30 images, so intervals are wide. The study
takes eleven minutes on a CPU (an Intel Xeon) with compilation. `:quill` after
the file's name takes another concept of `configs/resurgence.py`.
"""

from unlearning_jax.configs import resurgence

from unlearning_jax.concepts import check_choice

_COUNTS = {"explicit": 30, "words": 12, "others": 24, "tuned": 12}


def get_config(concept="star"):
  check_choice("concept", concept, resurgence.CONCEPTS)

  def block(**axes):
    whole = {
      "methods": ("uce", "esd_x", "esd_u"), "concepts": (concept,),
      "sets": ("near",), "algorithms": ("full",), "defenses": ("none",),
      "seeds": (0,),
    }  # fmt: skip
    return whole | axes

  blocks = (
    # First the run that projected updates are compared with.
    block(methods=("esd_x",), defenses=("none", "project")),
    block(algorithms=("full", "lora")),
    block(sets=("out",)),
  )
  config = resurgence.study(
    blocks, steps=(10, 50), counts=_COUNTS, batch_size=16
  )
  # Divides the 90 prompts of one measurement.
  config.batch_size = 30
  return config
