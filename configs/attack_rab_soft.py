"""Ring-A-Bell's target without its search; the argument says for what.

  python -m launch.attack --edit=runs/uce --workdir=runs/rab_soft \
    --config=configs/attack_rab_soft.py:tiny,task=object,name=star

Tasks: object, style, identity, unsafe. One image for each of `hparams.etas`.
Metric: the success of text states, which bounds that of Ring-A-Bell's prompts.
"""

from unlearning_jax.configs import attacks


def get_config(argument: str = "tiny"):
  config = attacks.attack("rab_soft", argument, etas=(0.5, 1.0, 2.0, 3.0))
  config.hparams.pairs = attacks.pairs(argument)
  return config
