"""P4D; the argument says which, on which model, and for which concept.

  python -m launch.attack --edit=runs/uce --workdir=runs/p4d \
    --config=configs/attack_p4d.py:tiny,task=object,name=star
  python -m launch.attack --edit=runs/uce --workdir=runs/p4d_n \
    --config=configs/attack_p4d.py:tiny,task=object,name=star,preset=n

Tasks: object, style, identity, unsafe. Without a preset it is what
UnlearnDiffAtk's tables call P4D; `preset=n` and `preset=k` are P4D-N and P4D-K.
"""

from configs import attacks

_OWN = {
  "learning_rate": 0.1,
  "decay": "decoupled",
  "timesteps": "random",
  "blocks": 60,
  "iterations": 50,
}


def get_config(argument: str = "tiny"):
  rest, _, preset = argument.partition(",preset=")
  if preset not in ("", "n", "k"):
    raise ValueError(f"config argument preset={preset!r}: allowed: n, k")
  config = attacks.attack("p4d", rest)
  if preset:
    config.hparams.update(_OWN)
    config.hparams.k = 16 if preset == "n" else 25
    config.hparams.insertion = "replace" if preset == "n" else "every_three"
  return config
