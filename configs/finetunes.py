"""Builds the fine-tuning configs."""

import dataclasses

import ml_collections
from unlearning_jax.configs import common

from unlearning_jax.experiments.finetune import Data, Settings


def parse(train: str, argument: str) -> tuple[str, ml_collections.ConfigDict]:
  """The size that a config's argument names, and the config to start from.

  On `tiny` the data are renders of the Shapes world, and `only` and `without`
  choose classes. At full size they are a folder of captioned images,
  `--config.data.path`.

  Args:
    train: `Settings.train`: lora, full, cross, kv, ...
    argument: as `tiny,only=object/circle+square`.
  """
  chosen = common.parse(argument, size="tiny", only="", without="")
  size, tiny = chosen["size"], chosen["size"] == "tiny"
  data = Data(only=chosen["only"], without=chosen["without"])
  if tiny:
    data = dataclasses.replace(data, source="shapes", flip=False)
  made = Settings(
    train=train,
    model=common.MODELS[size],
    dtype="float32" if tiny else "bfloat16",
    remat=not tiny,
    data=data,
  )
  return size, common.config_of(made)
