"""UCE erases a concept; the argument says from which model, and what.

  python -m launch.erase --workdir=runs/uce \
    --config=configs/erase_uce.py:tiny,task=style,name=swirl
  python -m launch.erase --workdir=runs/nudity --config.model=my/sd14 \
    --config=configs/erase_uce.py:sd14,task=unsafe

Tasks: object, style, identity, unsafe; also i2p, imagenette at full size.
On two CPU cores, `tiny` takes about two minutes, nearly all of it drawing.
Metric: accuracy on the erased concept and on everything else.
"""

from configs import erasures


def get_config(argument: str = "tiny"):
  config = erasures.erase("uce", argument)
  return config
