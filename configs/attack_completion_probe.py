"""Completion (Lu et al., NeurIPS 2025): the victim finishes the base's picture.

  python -m launch.attack --edit=runs/uce --workdir=runs/completion \
    --config=configs/attack_completion_probe.py:tiny,task=object,name=star \
    --config.never_knew=runs/never_saw

The base takes `hparams.base_steps` of 50 steps; one image for each number.
`config.never_knew` is the probe's control, as in `attack_noise_probe`.
`preset=paper` has step 5, `preset=reference` the released code's 1, 2 and 3.
"""

from unlearning_jax.configs import attacks

_PRESETS = {
  "paper": {},
  "reference": {"base_steps": (1, 2, 3)},
}


def get_config(argument: str = "tiny"):
  return attacks.probe("completion_probe", argument, _PRESETS)
