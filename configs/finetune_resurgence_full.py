"""Concept resurgence, whole: six erasures, four tasks, three seeds.

  python -m launch.resurgence --workdir=runs/study \
    --config=configs/finetune_resurgence_full.py
"""

from configs import resurgence

_SINGLE = ("star", "neon", "quill", "hazard")
_BOTH = ("lora", "full")
_SEEDS = (0, 1, 2)


def get_config():
  def block(**axes):
    whole = {
      "methods": resurgence.METHODS, "concepts": _SINGLE, "sets": ("in",),
      "algorithms": _BOTH, "defences": ("none",), "seeds": _SEEDS,
    }  # fmt: skip
    return whole | axes

  blocks = (
    block(sets=("near", "out")),
    block(sets=("far",), algorithms=("full",)),
    block(sets=("in", "same", "control"), concepts=("star",), seeds=(0,)),
    # Does a defence of keys and values stop it?
    block(
      methods=("esd_x", "esd_u", "concept_ablation"), concepts=("star",),
      sets=("near",), algorithms=("full",),
      defences=("project", "anchor", "reassert"),
    ),
    # Do more erased names come back more?
    block(
      methods=("uce", "mace", "esd_x"), concepts=("people 5", "people 10",
      "people all", "objects 5", "objects 10"), sets=("out",),
      algorithms=("lora",), seeds=(0,),
    ),
  )  # fmt: skip
  return resurgence.study(
    blocks,
    steps=(10, 30, 100),
    counts={"explicit": 70, "words": 24, "others": 40, "tuned": 20},
  )
