"""A negative prompt steers a model away from a concept.

  python -m launch.erase --workdir=runs/negative \
    --config=configs/erase_negative_prompt.py:tiny,task=object,name=star
  python -m launch.erase --workdir=runs/nudity --config.model=my/sd14 \
    --config=configs/erase_negative_prompt.py:sd14,task=unsafe

No weight changes: the run's folder has `guidance.json`. `tiny` takes about two
minutes on two CPU cores, all of them drawing.
"""

from unlearning_jax.configs import erasures


def get_config(argument: str = "tiny"):
  return erasures.erase("negative_prompt", argument)
