"""TIME gives a phrase another meaning; the argument says from which model.

  python -m launch.erase --workdir=runs/time \
    --config=configs/erase_time.py:tiny,task=style,name=swirl

Tasks: object, style, identity, unsafe; also i2p, imagenette at full size.
`preset=reference` refuses an anchor that lacks one of the concept's words, as
the release does.
On two CPU cores, `tiny` takes about two minutes, nearly all of it drawing.
Metric: accuracy on the erased concept and on everything else.
"""

from unlearning_jax.configs import erasures


def get_config(argument: str = "tiny"):
  return erasures.erase("time", argument)
