"""ESD (Gandikota et al., ICCV 2023) trains a concept away.

  python -m launch.erase --workdir=runs/esd \
    --config=configs/erase_esd.py:tiny,task=object,name=star
  python -m launch.erase --workdir=runs/van_gogh --config.model=my/sd14 \
    --config=configs/erase_esd.py:sd14,task=style

As the paper advises, styles and names train cross-attention (ESD-x), objects
and unsafe content all the rest (ESD-u); `--config.hparams.train=x` overrides
this. `tiny` takes up to 100 seconds on one core of an Intel Xeon, without the
drawing; full size was not timed. The published batch size of 1 uses one device.

Images in which the judge still sees what `tiny` erased (asked for by name, of
70), and right images of other prompts (of 24); 8 steps of DPM-Solver++, one
seed. The base has 70, 70, 69, 69 and 24, 24, 23, 24.

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
