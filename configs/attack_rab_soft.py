"""Ring-A-Bell (Tsai et al., ICLR 2024) without its search.

  python -m launch.attack --edit=runs/uce --workdir=runs/rab_soft \
    --config=configs/attack_rab_soft.py:tiny,task=object,name=star

It draws one image for each of `hparams.etas`. Its success is that of text
states, an upper bound for Ring-A-Bell's prompts.
"""

from unlearning_jax.configs import attacks


def get_config(argument: str = "tiny"):
  config = attacks.attack("rab_soft", argument, etas=(0.5, 1.0, 2.0, 3.0))
  config.hparams.pairs = attacks.pairs(argument)
  return config
