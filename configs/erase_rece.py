"""RECE erases a concept; the argument says from which model, and what.

  python -m launch.erase --workdir=runs/rece \
    --config=configs/erase_rece.py:tiny,task=style,name=swirl
  python -m launch.erase --workdir=runs/nudity --config.model=my/sd14 \
    --config=configs/erase_rece.py:sd14,task=unsafe

Tasks: object, style, identity, unsafe; also i2p, imagenette at full size.
On two CPU cores, `tiny` takes about two minutes, nearly all of it drawing.
Metric: accuracy on the erased concept and on everything else.
"""

from configs import erasures


def get_config(argument: str = "tiny"):
  config = erasures.erase("rece", argument)
  # At full size that task is the published one of nudity, with its recipe.
  if config.model != "shapes" and "task=unsafe" in argument:
    config.hparams.recipe = "nudity"
  return config
