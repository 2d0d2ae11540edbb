"""Trains the autoencoder: 32 x 32 pixels to 8 x 8 x 8 latents.

  python -m launch.train --config=configs/train_shapes_vae.py \
    --workdir=runs/vae --model=runs/shapes
"""

from unlearning_jax.configs import trainings


def get_config():
  config = trainings.stage("vae")
  config.num_steps = 2_600
  config.optimizer.learning_rate = 2e-3
  config.loss = {"edge_weight": 0.5, "kl_weight": 1e-4}
  config.vae = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 8,
    "block_out_channels": (16, 32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": 32,
    "scaling_factor": 1.0,
  }
  return config
