"""P4D (Chin et al., ICML 2024), in the three forms of the literature.

  python -m launch.attack --edit=runs/uce --workdir=runs/p4d \
    --config=configs/attack_p4d.py:tiny,task=object,name=star
  python -m launch.attack --edit=runs/uce --workdir=runs/p4d_n \
    --config=configs/attack_p4d.py:tiny,task=object,name=star,preset=n

`preset=n` is P4D-N, `preset=k` is P4D-K. The default, `unlearn_diff_atk`, is
what UnlearnDiffAtk's tables call P4D.
"""

from unlearning_jax.configs import attacks

_OWN = {
  "learning_rate": 0.1,
  "decay": "decoupled",
  "timesteps": "random",
  "blocks": 60,
  "iterations": 50,
}
_PRESETS = {
  "unlearn_diff_atk": {},
  "n": _OWN | {"num_tokens": 16, "insertion": "replace"},
  "k": _OWN | {"num_tokens": 25, "insertion": "every_three"},
}


def get_config(argument: str = "tiny"):
  return attacks.attack("p4d", argument, _PRESETS)
