"""Trains the UNet, on the latents and text states of the other parts.

  python -m launch.train --config=configs/train_shapes_unet.py \
    --workdir=runs/unet --model=runs/shapes
"""

from unlearning_jax.configs import trainings


def get_config():
  config = trainings.stage("unet")
  config.num_steps = 4_000
  config.optimizer.learning_rate = 1e-3
  config.ema_decay = 0.997
  config.loss = {"snr_gamma": 5.0, "caption_dropout": 0.1}
  config.scheduler = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
  }
  config.unet = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "sample_size": 8,
    "in_channels": 8,
    "out_channels": 8,
    "block_out_channels": (64, 128),
    "down_block_types": ("CrossAttnDownBlock2D",) * 2,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2,
    "layers_per_block": 1,
    "cross_attention_dim": 128,
    "attention_head_dim": 4,
    "norm_num_groups": 16,
  }
  return config
