"""ESD trains a concept away; the argument says from which model, and what.

  python -m launch.erase --workdir=runs/esd \
    --config=configs/erase_esd.py:tiny,task=object,name=star
  python -m launch.erase --workdir=runs/van_gogh --config.model=my/sd14 \
    --config=configs/erase_esd.py:sd14,task=style

Styles and names train cross-attention (ESD-x), objects and unsafe content all
the rest (ESD-u), as the paper advises; `--config.hparams.train=x` overrides.
On one core of an Intel Xeon `tiny` takes up to 100 seconds, drawing left out;
full size was not timed. The published batch, of one, trains on one device.
Metric: accuracy on the erased concept and on everything else.

`tiny` was measured, by name of 70 images / others of 24 (8 steps of
DPM-Solver++, one seed; the base has 70, 70, 69, 69 and 24, 24, 23, 24):

  ESD-x, 1e-4   star, 100 steps 21 / 23, 150 11 / 21
                neon, 100 steps 11 / 23, 150 3 / 22
                Quill Estane, 100 steps 0 / 22
                hazard, 100 steps 66 / 24
  ESD-u, 5e-5   star, 120 steps 26 / 23, 160 23 / 23
                neon, 120 steps 12 / 21, 160 4 / 22
                Quill Estane, 60 steps 2 / 24, 120 0 / 15
                hazard, 120 steps 18 / 24
"""

from unlearning_jax.configs import erasures


def get_config(argument: str = "tiny"):
  config = erasures.erase("esd", argument)
  named = "task=style" in argument or "task=identity" in argument
  config.hparams.train = "x" if named else "u"
  return config
