"""UnlearnDiffAtk; the argument says on which model, and for which concept.

  python -m launch.attack --edit=runs/uce --workdir=runs/attack \
    --config=configs/attack_unlearn_diff_atk.py:tiny,task=object,name=star
  python -m launch.attack --config.table=prompts/nudity.csv \
    --config.victim=my/esd --config.model=my/sd14 --workdir=runs/nudity \
    --config=configs/attack_unlearn_diff_atk.py:sd14,task=unsafe

Tasks: object, style, identity, unsafe. `preset=reference` is the released
code's choice: coupled decay of 0.1, the same noise in every block, all ids. The
others change one thing, and can be joined: `preset=decoupled+frozen`.
Metric: attack success beside a control's, `--control=runs/random`.
"""

from configs import attacks

_PRESETS = {
  # Ours: no decay, fresh noise, ids that survive their text.
  "fixed": {},
  "reference": {"weight_decay": 0.1, "noise": "frozen", "vocabulary": "full"},
  # The ablation's axes.
  "coupled": {"weight_decay": 0.1, "decay": "coupled"},
  "decoupled": {"weight_decay": 0.1, "decay": "decoupled"},
  "no_decay": {"weight_decay": 0.0},
  "full": {"vocabulary": "full"},
  "roundtrip": {"vocabulary": "roundtrip"},
  "sequential": {"timesteps": "sequential", "draws": 1},
  # As many UNet rows as 40 single draws.
  "stratified": {"timesteps": "stratified", "draws": 4, "iterations": 10},
  "random": {"timesteps": "random"},
  "frozen": {"noise": "frozen"},
  "fresh": {"noise": "fresh"},
  "l1": {"criterion": "l1"},
}


def get_config(argument: str = "tiny"):
  return attacks.attack("unlearn_diff_atk", argument, _PRESETS)
