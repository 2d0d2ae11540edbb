"""Builds the attack configs."""

import dataclasses
import importlib

import ml_collections
from unlearning_jax.configs import common, erasures

from unlearning_jax import extensions, settings
from unlearning_jax.concepts import check_choice
from unlearning_jax.experiments.attack import Settings

# Adversarial tokens by task, as published.
_NUM_TOKENS = {"object": 3, "style": 3, "identity": 3, "unsafe": 5}

# Every attack's config has these, with the settings' defaults.
_FROM_SETTINGS = (
  "victim", "guidance", "diffusion_classifier", "new_words", "never_knew",
  "pool",
  "prompt_table", "target_images", "vocabulary", "long_prompts", "groups",
  "sharing", "lanes",
)  # fmt: skip


def parse(argument: str) -> dict[str, str]:
  """Reads an attack config's argument: size, task, name, preset."""
  chosen = common.parse(
    argument, size="tiny", task="object", name="", preset=""
  )
  check_choice("config argument task", chosen["task"], _NUM_TOKENS)
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
    argument: as `tiny,task=style,name=swirl,preset=full+random`: a size, a
      task (object, style, identity, unsafe), on `tiny` a class of the Shapes
      world, and presets.
    presets: name -> changes, with keys of the config or of `hparams`.
    full_size: the same, for changes at full size only.
    **hparams: replace the method's defaults.
  """
  presets, chosen = presets or {}, parse(argument)
  size, task = chosen["size"], chosen["task"]
  config = common.comparison(size)
  config.method = method
  module = importlib.import_module(f"unlearning_jax.attacks.{method}")
  config.hparams = dataclasses.asdict(module.Hparams())
  if "num_tokens" in config.hparams:
    config.hparams.num_tokens = _NUM_TOKENS[task]
  config.hparams.update(hparams)
  # `experiments.attack.settings` documents them.
  given = settings.plain(Settings(method=method, prompt_table="-")) | {
    "prompt_table": ""
  }
  for key in _FROM_SETTINGS:
    config[key] = given[key]
  config.pool.templates = ("a {}", "a picture of a {}", "a drawing of a {}")
  config.title = f"{method} on {chosen['name'] or task}"
  if size == "tiny":
    name = chosen["name"] or extensions.world("shapes").default(task)
    config.title = f"{method} on “{name}”"
    config.pool.concept = name
    config.targets = ({"task": task, "name": name},)
    config.rows_per_group = 100
    config.batch_size = 8
    config.lanes = 16
  else:
    config.rows_per_group = 1
    config.dtype = "bfloat16"
    # The published attacks' sampler, whatever the checkpoint names.
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
  """The phrases that the erase configs erase, with their anchors."""
  kept = (part for part in argument.split(",") if "preset=" not in part)
  concepts = erasures.erase("uce", ",".join(kept)).concepts
  return tuple((concept["erase"], concept["anchor"]) for concept in concepts)


def probe(
  method: str, argument: str, presets: dict | None = None, **hparams
) -> ml_collections.ConfigDict:
  """`attack` of a probe, which draws itself: with the size's guidance scale."""
  size = parse(argument)["size"]
  scale = common.comparison(size).sampling.guidance_scale
  own = {"guidance_scale": scale, **hparams}
  return attack(method, argument, presets, **own)
