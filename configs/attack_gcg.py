"""GCG on the denoising loss; the argument says on which model, for what.

  python -m launch.attack --edit=runs/uce --workdir=runs/gcg \
    --config=configs/attack_gcg.py:tiny,task=object,name=star

Tasks: object, style, identity, unsafe. An iteration costs one gradient and
`candidates` forward passes: give it fewer iterations than UnlearnDiffAtk.
"""

from configs import attacks


def get_config(argument: str = "tiny"):
  return attacks.attack("gcg", argument, iterations=10)
