"""Noise probe (Lu et al., NeurIPS 2025): no search, more noise than DDIM has.

  python -m launch.attack --edit=runs/uce --workdir=runs/noise \
    --config=configs/attack_noise_probe.py:tiny,task=object,name=star \
    --config.never_knew=runs/never_saw

`config.never_knew` is a network that was trained without the concept, the
probe's control; a network of random weights is the other. Each draws the same
rows, at most one image for each of `hparams.etas`. `preset=reference` has the
released code's 24 images, with four factors of the added noise.
"""

from unlearning_jax.configs import attacks

_PRESETS = {
  "paper": {},
  "reference": {"scales": (1.0, 1.02, 1.03, 1.04)},
}


def get_config(argument: str = "tiny"):
  return attacks.probe("noise_probe", argument, _PRESETS)
