"""UnlearnDiffAtk (Zhang et al., ECCV 2024).

  python -m launch.attack --edit=runs/uce --workdir=runs/attack \
    --config=configs/attack_unlearn_diff_atk.py:tiny,task=object,name=star
  python -m launch.attack --config.prompt_table=prompts/nudity.csv \
    --config.victim=my/esd --config.model=my/sd14 --workdir=runs/nudity \
    --config=configs/attack_unlearn_diff_atk.py:sd14,task=unsafe

`preset=reference` has the released code's choices: coupled decay of 0.1, the
same noise in every block, all ids; at full size also targets of 25 steps, and
no prompt of more than 60 tokens. Each other preset changes one choice, and `+`
joins several: `preset=decoupled+frozen`. `fewer` spends fewer UNet calls: rows
try what won on earlier rows before they search (`--config.sharing`). A CPU is
enough for `tiny`: 100 rows of 9 blocks of 25 iterations took six minutes on one
core of an Intel Xeon. At full size a step of one row needs 8.1 GiB in float32;
in bfloat16 it took 29.5 ms on an NVIDIA H200.
"""

from unlearning_jax.configs import attacks

_PRESETS = {
  # This library's: no decay, fresh noise, ids that survive their text.
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
  # Rows try what won on earlier rows before they search.
  "fewer": {"sharing.wave": 4, "sharing.tries": 4},
}

_FULL_SIZE = {
  "reference": {
    # Replaces `sampling` for target images.
    "target_sampling": {
      "num_inference_steps": 25,
      "guidance_scale": 7.5,
      "sampler": "lms",
    },
    # With start and end. A longer prompt counts as a failure, unless it shows
    # the concept by itself.
    "max_tokens": 60,
  },
}


def get_config(argument: str = "tiny"):
  return attacks.attack("unlearn_diff_atk", argument, _PRESETS, _FULL_SIZE)
