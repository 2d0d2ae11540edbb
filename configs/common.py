"""Pieces that several configs share."""

import ml_collections

from unlearning_jax.concepts import check_choice

# What a config file's argument (`config.py:tiny`) may be.
SIZES = ("tiny", "sd14", "sd21")


def parse(argument: str, **defaults: str) -> dict[str, str]:
  """Reads what follows a config's colon: a size, then `key=value` parts.

  Args:
    argument: as `sd14,task=unsafe`; a part without `=` is the size.
    **defaults: the keys that this config knows.

  Raises:
    ValueError: an unknown key or size, with what is allowed.
  """
  found = dict(defaults)
  for part in filter(None, argument.split(",")):
    key, _, value = part.rpartition("=")
    key = key or "size"
    check_choice("config argument", key, defaults)
    found[key] = value
  check_choice("config argument size", found["size"], SIZES)
  return found


def comparison(size: str) -> ml_collections.ConfigDict:
  """What to draw before and after an erasure, and with which model.

  `tiny` judges the embedded Shapes model; the full sizes draw the prompts in
  `prompts` and judge nothing. Set `--config.model` to a folder, a single file
  or a hub id.
  """
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.dtype = "float32"
  # Groups of prompts of one's own, for a model without a judge.
  config.prompts = ml_collections.ConfigDict()
  config.targets = ()
  # Rows of each group whose images are kept for the report.
  config.grid = 6
  if size == "tiny":
    config.model = "shapes"
    config.judge = "shapes"
    config.per_group = 50
    config.others = 100
    config.batch_size = 50
    config.sampling = {
      "num_steps": 15,
      "guidance_scale": 4.0,
      "sampler": "dpm++2m",
      "noise_source": "jax",
    }
    return config
  config.model = {
    "sd14": "CompVis/stable-diffusion-v1-4",
    "sd21": "stabilityai/stable-diffusion-2-1-base",
  }[size]
  config.judge = ml_collections.config_dict.placeholder(str)
  config.per_group = config.others = 0
  config.batch_size = 4
  config.sampling = {
    "num_steps": 50,
    "guidance_scale": 7.5,
    "sampler": ml_collections.config_dict.placeholder(str),
    # The noise of the published scripts on a CPU generator.
    "noise_source": "torch",
  }
  return config


def train_shapes(stage: str) -> ml_collections.ConfigDict:
  """What the four training stages of the Shapes model have in common."""
  config = ml_collections.ConfigDict()
  config.stage = stage
  config.seed = 0
  # A model folder whose weights this part starts from; "" starts afresh.
  config.init = ""
  config.data = {"size": 60_000, "seed": 0}
  config.batch_size = 64
  config.optimizer = {"learning_rate": 1e-3, "weight_decay": 0.01}
  config.ema_decay = 0.995
  config.log_every = 50
  config.checkpoint_every = 500
  return config
