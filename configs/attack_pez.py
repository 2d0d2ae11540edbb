"""PEZ (Wen et al., NeurIPS 2023) with the denoising loss.

  python -m launch.attack --edit=runs/uce --workdir=runs/pez \
    --config=configs/attack_pez.py:tiny,task=object,name=star

`configs/attack_p4d.py` has the same search with P4D's loss.
"""

from unlearning_jax.configs import attacks


def get_config(argument: str = "tiny"):
  return attacks.attack("pez", argument)
