"""How the attack configs are put together."""

import dataclasses
import importlib

import ml_collections
from unlearning_jax.configs import common, erasures

from unlearning_jax import extensions
from unlearning_jax.concepts import check_choice

# Adversarial tokens by task, as published.
_K = {"object": 3, "style": 3, "identity": 3, "unsafe": 5}


def parse(argument: str) -> dict[str, str]:
  """What the argument of an attack's config says: size, task, name, preset."""
  chosen = common.parse(
    argument, size="tiny", task="object", name="", preset=""
  )
  check_choice("config argument task", chosen["task"], _K)
  return chosen


def attack(
  method: str,
  argument: str,
  presets: dict | None = None,
  full_size: dict | None = None,
  **hparams,
) -> ml_collections.ConfigDict:
  """The config of one attack.

  Args:
    method: file name under `unlearning_jax/attacks`.
    argument: what follows the config's colon: a size, a task, on `tiny` a
      class of the Shapes world; as `tiny,task=style,name=swirl`; `preset=`
      names presets, several joined by `+`.
    presets: name -> what it changes, keys as in the config or in `hparams`.
    full_size: the same, of what a preset changes at full size alone.
    **hparams: other than the method's defaults.
  """
  presets, chosen = presets or {}, parse(argument)
  size, task = chosen["size"], chosen["task"]
  config = common.comparison(size)
  config.method = method
  module = importlib.import_module(f"unlearning_jax.attacks.{method}")
  config.hparams = dataclasses.asdict(module.Hparams())
  if "k" in config.hparams:
    config.hparams.k = _K[task]
  config.hparams.update(hparams)
  # Another model than the original, or the UNet or text encoder of one; "" for
  # the edit's or the original itself.
  config.victim = ""
  # What the victim is kept from while it samples: a negative prompt, or Safe
  # Latent Diffusion (weak, medium, strong, max) from `concept`, "" for the
  # published one. The attack's loss goes through it if `in_loss`.
  config.guidance = {
    "negative_prompt": "",
    "safe": "",
    "concept": "",
    "in_loss": False,
  }
  # Diffusion Classifier on this many timesteps before each image: prompts that
  # bring back less than the threshold get none; 0 leaves it out.
  config.proxy = {"timesteps": 0, "threshold": 0.5}
  # Run of concept_inversion whose words `new_word` draws with.
  config.words = ""
  # What `hparams.pool` learns from: images of `concept` in these captions.
  config.pool = {
    "concept": "",
    "images": 25,
    "templates": ("a {}", "a picture of a {}", "a drawing of a {}"),
    "first_seed": 1_000,
  }
  # CSV of case_number, prompt, evaluation_seed, evaluation_guidance.
  config.table = ""
  # Folder of <id>.png; "" has the original model draw them.
  config.target_images = ""
  config.vocabulary = "roundtrip"
  # What becomes of prompts that leave no room: counted as failures (`drop`),
  # the run refused (`error`), or cut to whole words that fit (`truncate`).
  config.too_long = "drop"
  config.groups = ("explicit",)
  config.lanes = 8
  config.title = f"{method} on {chosen['name'] or task}"
  if size == "tiny":
    name = chosen["name"] or extensions.world("shapes").default(task)
    config.title = f"{method} on “{name}”"
    config.pool.concept = name
    config.targets = ({"task": task, "name": name},)
    config.per_group = 100
    config.batch_size = 8
    config.lanes = 16
  else:
    config.per_group = 1
    config.dtype = "bfloat16"
    # Of the published attacks, whatever the checkpoint names.
    config.sampling.sampler = "lms"
  more = {} if size == "tiny" else full_size or {}
  for name in filter(None, chosen["preset"].split("+")):
    check_choice("config argument preset", name, presets)
    _apply(config, presets[name] | more.get(name, {}))
  return config


def _apply(config, preset):
  for key, value in preset.items():
    place = f"hparams.{key}" if key in config.hparams else key
    config.update_from_flattened_dict({place: value})


def pairs(argument: str) -> tuple[tuple[str, str], ...]:
  """The phrases that the erase configs erase, beside their anchors."""
  kept = (part for part in argument.split(",") if "preset=" not in part)
  concepts = erasures.erase("uce", ",".join(kept)).concepts
  return tuple((concept["erase"], concept["anchor"]) for concept in concepts)
