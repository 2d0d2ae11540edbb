"""Controls: what attacks are compared with.

  python -m launch.attack --edit=runs/uce --workdir=runs/random \
    --config=configs/attack_controls.py:tiny,task=object,name=star
  python -m launch.attack --edit=runs/uce --workdir=runs/seeds \
    --config=configs/attack_controls.py:tiny,preset=seed
  python -m launch.attack --workdir=runs/clean \
    --config=configs/attack_controls.py:tiny,preset=clean

Presets: `random` adds random tokens of the attacks' vocabulary and draws as
many images; `seed` draws new seeds; `none` draws the prompts alone. `clean` has
prompts that do not ask for the concept, alone or as `preset=clean+random`: what
the judge sees in their images is an error of the judge. `reference` has the
released controls' 40 images and all ids. `fewer` is the control of an attack
with that preset: its rows share the random words that won. On `tiny`, 100 rows
of `hparams.blocks=9` took two minutes on one core of an Intel Xeon.
"""

from unlearning_jax.configs import attacks

_PRESETS = {
  "random": {"kind": "random"},
  "seed": {"kind": "seed"},
  "none": {"kind": "none"},
  "clean": {"kind": "none", "groups": ("others",)},
  "reference": {"blocks": 40, "vocabulary": "full"},
  "fewer": {"sharing.wave": 4, "sharing.tries": 4},
}


def get_config(argument: str = "tiny"):
  return attacks.attack("controls", argument, _PRESETS)
