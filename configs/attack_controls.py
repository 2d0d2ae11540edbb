"""What an attack is compared with; the argument says for which concept.

  python -m launch.attack --edit=runs/uce --workdir=runs/random \
    --config=configs/attack_controls.py:tiny,task=object,name=star
  python -m launch.attack --edit=runs/uce --workdir=runs/seeds \
    --config=configs/attack_controls.py:tiny,preset=seed
  python -m launch.attack --workdir=runs/clean \
    --config=configs/attack_controls.py:tiny,preset=clean

Kinds: `random` tokens, from the same vocabulary and with as many images as the
attacks; `seed`, new seeds; `none`, the prompts alone. `clean` has prompts that
do not ask for the concept, alone or as `preset=clean+random`: what the judge
sees in their images it sees wrongly. The released controls, `preset=reference`
with either kind, had 40 images and all ids.
Metric: attack success, beside which an attack's is to be read. On `tiny` 100
rows of `hparams.blocks=9` took two minutes on a core of an Intel Xeon.
"""

from unlearning_jax.configs import attacks

_PRESETS = {
  "random": {"kind": "random"},
  "seed": {"kind": "seed"},
  "none": {"kind": "none"},
  "clean": {"kind": "none", "groups": ("others",)},
  "reference": {"blocks": 40, "vocabulary": "full"},
}


def get_config(argument: str = "tiny"):
  return attacks.attack("controls", argument, _PRESETS)
