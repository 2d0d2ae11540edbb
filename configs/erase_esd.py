"""ESD trains a concept away; the argument says from which model, and what.

  python -m launch.erase --workdir=runs/esd \
    --config=configs/erase_esd.py:tiny,task=object,name=star
  python -m launch.erase --workdir=runs/van_gogh --config.model=my/sd14 \
    --config=configs/erase_esd.py:sd14,task=style

Styles and names train cross-attention (ESD-x), objects and unsafe content all
the rest (ESD-u), as the paper advises; `--config.hparams.train=x` overrides.
Metric: accuracy on the erased concept and on everything else.
"""

from configs import erasures


def get_config(argument: str = "tiny"):
  config = erasures.erase("esd", argument)
  named = "task=style" in argument or "task=identity" in argument
  config.hparams.train = "x" if named else "u"
  if config.model == "shapes":
    # A prototype's, for a network that learns ten times faster.
    config.hparams.num_steps = 150
    config.hparams.learning_rate = 3e-4 if named else 1e-4
    config.hparams.num_inference_steps = 20
    config.hparams.batch_size = 4
  return config
