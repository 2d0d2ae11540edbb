"""ResAlign (Li et al., NeurIPS 2025) is meant to survive tuning.

  python -m launch.erase --workdir=runs/resalign \
    --config=configs/erase_resalign.py:tiny,task=object,name=star
  python -m launch.erase --workdir=runs/nudity --config.model=my/sd14 \
    --config=configs/erase_resalign.py:sd14,task=unsafe,preset=paper_code \
    --config.preserve=coco_objects

Full size has the published settings, which are for nudity. What is preserved
is drawn, held and tuned on: name phrases to `preserve`, or a list. Its lanes
need four.
"""

from unlearning_jax.configs import erasures


def get_config(argument: str = "tiny"):
  return erasures.erase("resalign", argument)
