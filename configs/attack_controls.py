"""What an attack is compared with; the argument says for which concept.

  python -m launch.attack --edit=runs/uce --workdir=runs/random \
    --config=configs/attack_controls.py:tiny,task=object,name=star
  python -m launch.attack --edit=runs/uce --workdir=runs/seeds \
    --config=configs/attack_controls.py:tiny --config.hparams.kind=seed

Kinds: `random` tokens, from the same vocabulary and with as many images as the
attacks; `seed`, new seeds; `none`, the prompts alone.
"""

from configs import attacks


def get_config(argument: str = "tiny"):
  return attacks.attack("controls", argument)
