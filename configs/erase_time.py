"""TIME (Orgad et al., ICCV 2023) gives a phrase another meaning.

  python -m launch.erase --workdir=runs/time \
    --config=configs/erase_time.py:tiny,task=style,name=swirl

Like the release, `preset=reference` refuses an anchor that lacks one of the
concept's words. `tiny` takes about two minutes on two CPU cores, nearly all of
them drawing.
"""

from unlearning_jax.configs import erasures


def get_config(argument: str = "tiny"):
  return erasures.erase("time", argument)
