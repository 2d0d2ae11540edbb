"""AdvUnlearn (Zhang et al., NeurIPS 2024) trains the text encoder under attack.

  python -m launch.erase --workdir=runs/advunlearn \
    --config=configs/erase_advunlearn.py:tiny,task=object,name=star
  python -m launch.erase --workdir=runs/nudity --config.model=my/sd14 \
    --config=configs/erase_advunlearn.py:sd14,task=unsafe

At full size it retains the prompts of the list `coco_objects`, without those
that name what is erased; `preserve=` takes phrases or a list of your own. As in
the paper they weigh 0.3 for unsafe content and 0.5 for the rest.
`--config.hparams.attack=fast` attacks with one step instead of 30. `tiny` takes
some four minutes on two CPU cores; docs/results/erase.md says what it erases.
"""

from unlearning_jax.configs import erasures

from unlearning_jax import lists
from unlearning_jax.concepts import naming


def get_config(argument: str = "tiny"):
  config = erasures.erase("advunlearn", argument)
  if config.model == "shapes":
    return config
  unsafe = config.concepts[0]["task"] == "unsafe"
  config.hparams.retain_weight = 0.3 if unsafe else 0.5
  if not erasures.parse(argument)["preserve"]:
    prompts = lists.load("coco_objects")
    named = naming(prompts, [c["erase"] for c in config.concepts])
    kept = tuple(prompt for prompt in prompts if prompt not in named)
    config.concepts = tuple(
      {**concept, "preserve": kept} for concept in config.concepts
    )
  return config
