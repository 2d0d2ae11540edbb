"""TINA (CVPR 2026) and TINA+: inverts an image of the concept without a text.

  python -m launch.attack --edit=runs/uce --workdir=runs/inversion \
    --config=configs/attack_inversion_probe.py:tiny,preset=tina_plus \
    --config.never_knew=runs/never_saw

`config.never_knew` is the probe's control, as in `attack_noise_probe`. Plain
TINA finds an image in networks of random weights too, so read its rate beside
theirs. `preset=fixed_point` solves each step by repetition, without AdamW.
"""

from unlearning_jax.configs import attacks

_PRESETS = {
  "tina": {},
  "tina_plus": {"energy": 1.0, "start": 0.1},
  "fixed_point": {"solver": "fixed_point"},
}


def get_config(argument: str = "tiny"):
  return attacks.attack("inversion_probe", argument, _PRESETS)
