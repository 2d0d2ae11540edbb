"""Concept resurgence, the whole study: six erasures, four tasks, three seeds.

  python -m launch.resurgence --workdir=runs/study \
    --config=configs/finetune_resurgence_full.py

`--dry_run` estimates its time and memory. Stop and start it at any time, on
another machine too: its rows are in `benchmarks/results/resurgence_full` (see
docs/results/resurgence.md). The cells that most readers ask for come first, and
`--report` writes the page of what is done. A point is 70 images by name for one
seed, 210 for all three.

Tuning takes 100 steps of 16 images: 1,600 samples of 250 images, near the
published LoRA protocol's 4,000, at ten times its rates.
"""

from unlearning_jax.configs import resurgence

_SINGLE = ("star", "quill", "neon", "hazard")
_TRAINED = ("esd_x", "esd_u", "concept_ablation")


def get_config():
  def block(**axes):
    whole = {
      "methods": resurgence.METHODS, "concepts": _SINGLE, "sets": ("near",),
      "algorithms": ("lora", "full"), "defenses": ("none",), "seeds": (0,),
    }  # fmt: skip
    return whole | axes

  def defended(seed: int):
    # Does a defense of keys and values stop it, and at what cost?
    return block(
      methods=_TRAINED, concepts=("star",), algorithms=("full",),
      defenses=("project", "anchor", "reassert"), seeds=(seed,),
    )  # fmt: skip

  def farther(seed: int):
    return block(
      concepts=("star", "quill"), sets=("far", "in"), algorithms=("full",),
      seeds=(seed,),
    )  # fmt: skip

  blocks = (
    block(),
    block(sets=("out",)),
    defended(0),
    # Is most of it there by step 100?
    block(
      methods=_TRAINED, concepts=("star",), algorithms=("lora 300", "full 300")
    ),
    farther(0),
    block(sets=("near", "out"), seeds=(1,)),
    block(concepts=("star",), sets=("same",), algorithms=("lora",)),
    block(
      methods=("esd_x",), concepts=("star",), sets=("control",),
      algorithms=("lora",),
    ),
    # Do more erased names come back more?
    block(
      methods=("uce", "mace", "esd_x"),
      concepts=("quill", "people 5", "people 10"), sets=("in",),
      algorithms=("lora",),
    ),
    block(
      methods=("uce", "mace", "esd_x"), concepts=("people all", "objects 5"),
      sets=("out",), algorithms=("lora",),
    ),
    # Does it matter how an erasure preserves, and what it maps to?
    block(methods=tuple(resurgence.VARIANTS), concepts=("quill",)),
    block(sets=("near", "out"), seeds=(2,)),
    defended(1),
    farther(1),
    defended(2),
    farther(2),
  )  # fmt: skip
  return resurgence.measured(blocks)
