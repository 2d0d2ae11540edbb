"""How the attack configs are put together."""

import dataclasses
import importlib

import ml_collections

from configs import common, shapes_concepts
from unlearning_jax.concepts import check_choice

# Adversarial tokens by task, as published.
_K = {"object": 3, "style": 3, "identity": 3, "unsafe": 5}


def attack(method: str, argument: str, **hparams) -> ml_collections.ConfigDict:
  """The config of one attack.

  Args:
    method: file name under `unlearning_jax/attacks`.
    argument: what follows the config's colon: a size, a task, on `tiny` a
      class of the Shapes world; as `tiny,task=style,name=swirl`.
    **hparams: other than the method's defaults.
  """
  chosen = common.parse(argument, size="tiny", task="object", name="")
  size, task = chosen["size"], chosen["task"]
  check_choice("config argument task", task, _K)
  config = common.comparison(size)
  config.method = method
  module = importlib.import_module(f"unlearning_jax.attacks.{method}")
  config.hparams = dataclasses.asdict(module.Hparams()) | {"k": _K[task]}
  config.hparams.update(hparams)
  # Another model than the original, "" for the edit's or the original itself.
  config.victim = ""
  # CSV of case_number, prompt, evaluation_seed, evaluation_guidance.
  config.table = ""
  # Folder of <id>.png; "" has the original model draw them.
  config.target_images = ""
  config.vocabulary = "roundtrip"
  config.groups = ("explicit",)
  config.lanes = 8
  config.title = f"{method} on {chosen['name'] or task}"
  if size == "tiny":
    name = chosen["name"] or shapes_concepts.DEFAULTS[task]
    config.title = f"{method} on “{name}”"
    config.targets = ({"task": task, "name": name},)
    config.per_group = 100
    config.batch_size = 8
    config.lanes = 16
  else:
    config.per_group = 1
    config.dtype = "bfloat16"
  return config
