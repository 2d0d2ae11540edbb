"""Trains the independent judge of the Shapes world.

  python -m launch.train --config=configs/train_shapes_judge.py \
    --workdir=runs/judge --model=runs/shapes
"""

from unlearning_jax.configs import trainings


def get_config():
  config = trainings.stage("judge")
  # Another seed than the generator's, for weights, order and renders.
  config.seed = 1009
  config.data.seed = 1009
  config.data.size = 24_000
  config.num_steps = 1_500
  config.batch_size = 64
  config.ema_decay = 0.99
  return config
