"""UnlearnDiffAtk; the argument says on which model, and for which concept.

  python -m launch.attack --edit=runs/uce --workdir=runs/attack \
    --config=configs/attack_unlearn_diff_atk.py:tiny,task=object,name=star
  python -m launch.attack --config.prompt_table=prompts/nudity.csv \
    --config.victim=my/esd --config.model=my/sd14 --workdir=runs/nudity \
    --config=configs/attack_unlearn_diff_atk.py:sd14,task=unsafe

Tasks: object, style, identity, unsafe. `preset=reference` is the released
code's choice: coupled decay of 0.1, the same noise in every block, all ids; at
full size its targets of 25 steps, and no prompt of more than 60 tokens. The
others change one thing, and can be joined: `preset=decoupled+frozen`.
Metric: attack success beside a control's, `--control=runs/random`.
A CPU will do for `tiny`: 100 rows of 9 blocks of 25 iterations took six minutes
on a core of an Intel Xeon. At full size a step of one row takes 8.1 GiB in
float32, and took 29.5 ms on an NVIDIA H200 in bfloat16.
"""

from unlearning_jax.configs import attacks

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

_FULL_SIZE = {
  "reference": {
    # How target images are drawn, other than by `sampling`.
    "target_sampling": {
      "num_inference_steps": 25,
      "guidance_scale": 7.5,
      "sampler": "lms",
    },
    # Start and end counted; longer prompts are failures unless they succeed by
    # themselves.
    "max_tokens": 60,
  },
}


def get_config(argument: str = "tiny"):
  return attacks.attack("unlearn_diff_atk", argument, _PRESETS, _FULL_SIZE)
