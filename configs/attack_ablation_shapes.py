"""UnlearnDiffAtk (Zhang et al., ECCV 2024): what is each of its choices worth?

  python -m launch.attack_matrix --workdir=runs/ablation \
    --config=configs/attack_ablation_shapes.py

`:style` after the file's name takes that task; the default is `object+unsafe`.
All columns have the same number of images and of UNet rows. `fixed` is this
library's default, `reference` the released code's; each other column changes
one choice of `fixed`. `random` draws ids that survive their text. `random_full`
draws from all ids: it is the control of the columns that search all ids.
"""

from unlearning_jax.configs import attack_matrix_shapes, attack_unlearn_diff_atk

_TASKS = "object+unsafe"
# Presets of configs/attack_unlearn_diff_atk.py.
_PRESETS = (
  "fixed",
  "coupled",
  "decoupled",
  "full",
  "stratified",
  "random",
  "frozen",
  "reference",
)
_ITERATIONS = 25
# As many UNet rows as the single draws of the other columns.
_DRAWS = 5


def get_config(argument: str = ""):
  config = attack_matrix_shapes.get_config(argument or _TASKS)
  config.title = "UnlearnDiffAtk: what each choice is worth"
  config.common.rows_per_group = 50
  random = config.attacks.random
  attacks = {
    "none": config.attacks.none,
    "random": random,
    "random_full": {**random, "changes": {"vocabulary": "full"}},
    **{_column(name): _attack(name) for name in _PRESETS},
  }
  config.columns, config.attacks = tuple(attacks), attacks
  config.erasures = {"uce": config.erasures.uce}
  return config


def _column(preset: str) -> str:
  """The column of a preset; `random` is already the control's name."""
  return "random_t" if preset == "random" else preset


def _attack(preset: str) -> dict:
  """A preset as a column, without what the matrix's budget and task give."""
  made = attack_unlearn_diff_atk.get_config(f"tiny,preset={preset}")
  hparams = made.hparams.to_dict()
  del hparams["num_tokens"], hparams["blocks"]
  hparams["iterations"] = _ITERATIONS
  if hparams["draws"] > 1:
    hparams |= {"draws": _DRAWS, "iterations": _ITERATIONS // _DRAWS}
  return {
    "method": "unlearn_diff_atk",
    "hparams": hparams,
    "changes": {"vocabulary": made.vocabulary},
    "control": "random_full" if made.vocabulary == "full" else "random",
  }
