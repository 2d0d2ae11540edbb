"""A negative prompt steers a model away from a concept that the argument names.

  python -m launch.erase --workdir=runs/negative \
    --config=configs/erase_negative_prompt.py:tiny,task=object,name=star
  python -m launch.erase --workdir=runs/nudity --config.model=my/sd14 \
    --config=configs/erase_negative_prompt.py:sd14,task=unsafe

No weight changes: the run's folder holds `guidance.json`.
On two CPU cores, `tiny` takes about two minutes, all of it drawing.
Metric: accuracy on the erased concept and on everything else.
"""

from unlearning_jax.configs import erasures


def get_config(argument: str = "tiny"):
  return erasures.erase("negative_prompt", argument)
