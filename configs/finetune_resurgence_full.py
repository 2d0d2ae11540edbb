"""Concept resurgence, whole: six erasures, four tasks, three seeds.

  python -m launch.resurgence --workdir=runs/study \
    --config=configs/finetune_resurgence_full.py

Meant for one night on two CPU cores; `--dry_run` estimates how long and how
much. It may be stopped and begun again at any time: cells come seed by seed,
the main comparison first, and `--report` writes the page from what there is.
A point is 210 images by name over the three seeds. Metric: R_norm with its
interval.
"""

from configs import resurgence

_SINGLE = ("star", "neon", "quill", "hazard")
_SEVERAL = (
  "people 5", "people 10", "people all", "objects 5", "objects 10",
  "styles all",
)  # fmt: skip
_COUNTS = {"explicit": 70, "words": 12, "others": 24, "tuned": 12}


def get_config():
  def block(**axes):
    whole = {
      "methods": resurgence.METHODS, "concepts": _SINGLE, "sets": ("near",),
      "algorithms": ("lora", "full"), "defences": ("none",),
      "seeds": (0, 1, 2),
    }  # fmt: skip
    return whole | axes

  blocks = (
    block(sets=("near", "out")),
    # Does a defence of keys and values stop it, and what does it cost?
    block(
      methods=("esd_x", "esd_u", "concept_ablation"), concepts=("star",),
      algorithms=("full",), defences=("project", "anchor", "reassert"),
    ),
    block(
      concepts=("star", "quill"), sets=("far", "in"), algorithms=("full",)
    ),
    block(
      concepts=("star",), sets=("same", "control"), algorithms=("lora",),
      seeds=(0,),
    ),
    # Do more erased names come back more?
    block(
      methods=("uce", "mace", "esd_x"), concepts=_SEVERAL, sets=("out",),
      algorithms=("lora",), seeds=(0,),
    ),
  )  # fmt: skip
  config = resurgence.study(blocks, steps=(5, 20, 100), counts=_COUNTS)
  # What divides the prompts of one measurement, 130.
  config.batch_size = 26
  for tuning in config.algorithms.values():
    tuning.batch_size = 32
  return config
