"""GCG on the denoising loss; the argument says on which model, for what.

  python -m launch.attack --edit=runs/uce --workdir=runs/gcg \
    --config=configs/attack_gcg.py:tiny,task=object,name=star

Tasks: object, style, identity, unsafe. An iteration costs one gradient and
`candidates` forward passes: give it fewer iterations than UnlearnDiffAtk.
`preset=published` has the sizes of the attack on text encoders.
"""

from configs import attacks

# Twenty slots, and more candidates than a diffusion loss can pay for.
_PRESETS = {"published": {"k": 20, "top": 256, "candidates": 512}}


def get_config(argument: str = "tiny"):
  return attacks.attack("gcg", argument, _PRESETS, iterations=10)
