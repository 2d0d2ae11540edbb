"""What each choice of UnlearnDiffAtk is worth, against random tokens.

  python -m launch.attack_matrix --workdir=runs/ablation \
    --config=configs/attack_ablation_shapes.py

The argument may say which tasks: `configs/attack_ablation_shapes.py:style`
(the object and the unsafe attribute by default). Every column has the same
images and the same UNet rows to spend: `fixed` is this library's default,
`reference` the released code's choice, the others change one thing of `fixed`.
`random` draws from the ids that survive their text, `random_full` from all: the
control of the columns that draw from all.
Metric: ASR beside the control's on the same rows, and the gradient's scale.
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
# As many UNet rows of gradient as the other columns' single draws.
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
  """A name of its own for the timesteps that are drawn at random."""
  return "random_t" if preset == "random" else preset


def _attack(preset: str) -> dict:
  """A preset as a column: what the matrix's budget and task do not give."""
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
