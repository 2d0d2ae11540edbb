"""Pieces that several configs share."""

import ml_collections


def train_shapes(stage: str) -> ml_collections.ConfigDict:
  """What the four training stages of the Shapes model have in common."""
  config = ml_collections.ConfigDict()
  config.stage = stage
  config.seed = 0
  config.data = {"size": 60_000, "seed": 0}
  config.batch_size = 64
  config.optimizer = {"learning_rate": 1e-3, "weight_decay": 0.01}
  config.ema_decay = 0.995
  config.log_every = 50
  config.checkpoint_every = 500
  return config
