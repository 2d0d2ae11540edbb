"""PEZ on the denoising loss; the argument says on which model, for what.

  python -m launch.attack --edit=runs/uce --workdir=runs/pez \
    --config=configs/attack_pez.py:tiny,task=object,name=star

Tasks: object, style, identity, unsafe. The same search with P4D's loss is
`configs/attack_p4d.py`. Metric: attack success beside a control's.
"""

from unlearning_jax.configs import attacks


def get_config(argument: str = "tiny"):
  return attacks.attack("pez", argument)
