"""Concept resurgence, the short way: does an erased star come back?

  python -m launch.resurgence --workdir=runs/resurgence \
    --config=configs/finetune_resurgence_small.py

Three erasures of the star, tuned on pictures of its four nearest objects (all
weights, or low-rank adapters) and on portraits; one of them with projected
updates as well. 30 images a point: intervals are wide. Eleven CPU minutes (an
Intel Xeon), compilation included. Another concept of `configs.resurgence`
follows a colon, as `finetune_resurgence_small.py:quill`.
Metric: R_norm with its interval.
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
    # First what projected updates are compared with.
    block(methods=("esd_x",), defenses=("none", "project")),
    block(algorithms=("full", "lora")),
    block(sets=("out",)),
  )
  config = resurgence.study(
    blocks, steps=(10, 50), counts=_COUNTS, batch_size=16
  )
  # What divides the prompts of one measurement, 90.
  config.batch_size = 30
  return config
