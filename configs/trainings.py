"""Builds the configs that train the Shapes model."""

import ml_collections


def stage(name: str) -> ml_collections.ConfigDict:
  """The config of one stage, without its networks and its loss."""
  config = ml_collections.ConfigDict()
  config.stage = name
  config.seed = 0
  # A model folder whose weights this part starts from; "" for new weights.
  config.init = ""
  # `without` names classes to leave out, as `object/star,style/neon`.
  config.data = {"size": 60_000, "seed": 0, "without": ""}
  config.batch_size = 64
  config.optimizer = {"learning_rate": 1e-3, "weight_decay": 0.01}
  config.ema_decay = 0.995
  config.log_every = 50
  config.checkpoint_every = 500
  return config
