"""Concept resurgence of the erasures by training, beside three known ones.

  python -m launch.resurgence --workdir=runs/staying \
    --config=configs/finetune_resurgence_staying.py

SalUn, AdvUnlearn, EraseDiff, FMN, SPM, ResAlign and Meta-Unlearning erase the
star, and so do RECE, MACE and ESD-x. Each model is tuned on pictures of the
four nearest objects, by LoRA and by all weights, with the prompts, images and
steps of `finetune_resurgence_full.py`. ResAlign and Meta-Unlearning are meant
to survive that. SalUn, AdvUnlearn and ResAlign have three seeds. `:quill` after
the file's name takes another concept of `configs/resurgence.py`.
"""

from unlearning_jax.configs import resurgence

from unlearning_jax.concepts import check_choice

_KNOWN = ("rece", "mace", "esd_x")
_SEEDED = ("salun", "advunlearn", "resalign")
_OTHERS = ("erasediff", "spm", "fmn", "meta_unlearning")


def get_config(concept="star"):
  check_choice("concept", concept, resurgence.CONCEPTS)

  def block(methods, *seeds):
    return {
      "methods": methods, "concepts": (concept,), "sets": ("near",),
      "algorithms": ("lora", "full"), "defenses": ("none",), "seeds": seeds,
    }  # fmt: skip

  return resurgence.measured(
    (
      block((*_SEEDED, *_OTHERS), 0),
      block(_SEEDED, 1),
      block(_SEEDED, 2),
      # Last, since the full study has them too.
      block(_KNOWN, 0),
    )
  )
