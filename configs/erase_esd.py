"""ESD trains a concept away; the argument says from which model, and what.

  python -m launch.erase --workdir=runs/esd \
    --config=configs/erase_esd.py:tiny,task=object,name=star
  python -m launch.erase --workdir=runs/van_gogh --config.model=my/sd14 \
    --config=configs/erase_esd.py:sd14,task=style

Styles and names train cross-attention (ESD-x), objects and unsafe content all
the rest (ESD-u), as the paper advises; `--config.hparams.train=x` overrides.
Metric: accuracy on the erased concept and on everything else.

`tiny` is between two points that were measured, by name / others (8 steps of
DPM-Solver++, one seed; of ESD-x 30 and 40 images, of ESD-u 24 and 25):

  ESD-x, 1e-4   star, 75 steps .27 / 1.00, 100 .10 / 1.00, 150 .03 / .85
                neon, 75 steps .03 / 1.00, 100 .00 / 1.00, 150 .03 / 1.00
                Quill Estane, 50 steps .00 / 1.00, 75 .00 / .97
  ESD-u, 5e-5   star, 75 steps .33 / .96, 100 .21 / .88, 150 .00 / .84
                hazard, 50 steps .75 / 1.00, 75 .33 / 1.00

ESD-x of the hazard, and ESD-u of neon and Quill Estane, were not.
"""

from typing import Any

from configs import erasures


def get_config(argument: str = "tiny"):
  config = erasures.erase("esd", argument)
  named = "task=style" in argument or "task=identity" in argument
  config.hparams.train = "x" if named else "u"
  if config.model == "shapes":
    config.hparams.update(tiny(config.hparams.train))
  return config


def tiny(train: str) -> dict[str, Any]:
  """What the Shapes model wants, which learns ten times faster.

  One setting for all concepts, gentle enough to leave the others alone.
  """
  return {
    "train": train,
    "num_steps": 100 if train == "x" else 120,
    "learning_rate": 1e-4 if train == "x" else 5e-5,
    "num_inference_steps": 10,
    "batch_size": 4,
  }
