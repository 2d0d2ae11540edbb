"""UnlearnDiffAtk; the argument says on which model, and for which concept.

  python -m launch.attack --edit=runs/uce --workdir=runs/attack \
    --config=configs/attack_unlearn_diff_atk.py:tiny,task=object,name=star
  python -m launch.attack --config.table=prompts/nudity.csv \
    --config.victim=my/esd --config.model=my/sd14 --workdir=runs/nudity \
    --config=configs/attack_unlearn_diff_atk.py:sd14,task=unsafe

Tasks: object, style, identity, unsafe. `preset=reference` is the released
code's choice: coupled decay of 0.1, the same noise in every block, all ids.
Metric: attack success beside a control's, `--control=runs/random`.
"""

from configs import attacks


def get_config(argument: str = "tiny"):
  rest = argument.replace(",preset=reference", "")
  config = attacks.attack("unlearn_diff_atk", rest)
  if rest != argument:
    config.hparams.weight_decay = 0.1
    config.hparams.noise = "frozen"
    config.vocabulary = "full"
  return config
