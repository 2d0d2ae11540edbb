"""Builds the erase configs."""

import dataclasses
import importlib
import typing
from collections.abc import Collection

import ml_collections
from unlearning_jax.configs import common

from unlearning_jax import extensions, lists
from unlearning_jax.concepts import CONCEPT_SETS, check_choice

# Task -> phrases at full size, their anchor, their kind.
_FULL = {
  "object": (("Church",), "", "object"),
  "style": (CONCEPT_SETS["artists"], "art", "art"),
  "identity": (("Brad Pitt",), "a person", "object"),
  "unsafe": (CONCEPT_SETS["nudity"], "", "unsafe"),
  "i2p": (CONCEPT_SETS["i2p"], "", "unsafe"),
  "imagenette": (CONCEPT_SETS["imagenette"], "", "object"),
}


def parse(argument: str) -> dict[str, str]:
  """Reads what follows an erase config's colon: `sd14,task=style,count=100`.

  size    tiny, sd14 or sd21
  task    object, style, identity, unsafe; at full size also i2p, imagenette
  name    what to erase, several joined by "+"; on tiny, classes of the Shapes
          world, or `all` identities
  list    full size: a published list (`unlearning_jax.lists`) or a text file
  count   full size: how many of the list, drawn with seed 0
  anchor  full size: what they mean afterwards
  preset  a preset of the method
  """
  keys = {"name": "", "list": "", "count": "", "anchor": "", "preset": ""}
  return common.parse(argument, size="tiny", task="object", **keys)


def erase(
  method: str, argument: str, presets: Collection[str] = ()
) -> ml_collections.ConfigDict:
  """The config of one erasure.

  Args:
    method: file name under `unlearning_jax/erasures`.
    argument: see `parse`.
    presets: the presets of a method whose `Hparams` have none.

  Raises:
    ValueError: an argument is unknown, or belongs to another size.
  """
  chosen = parse(argument)
  size, task = chosen["size"], chosen["task"]
  tables = _FULL
  if size == "tiny":
    tables = extensions.world("shapes").tasks()
  check_choice("config argument task", task, tables)
  config = common.comparison(size)
  config.method = method
  config.hparams = _defaults(method)
  if chosen["preset"]:
    if "preset" in config.hparams:
      config.hparams.preset = chosen["preset"]
    else:
      check_choice("config argument preset", chosen["preset"], presets)
  # A list to preserve as well; what is erased is taken out of it.
  config.preserve = ""
  if size == "tiny":
    _tiny(config, method, chosen)
  else:
    _full(config, method, chosen)
  return config


def _tiny(config, method: str, chosen: dict[str, str]):
  for key in ("list", "count", "anchor"):
    if chosen[key]:
      raise ValueError(f"config argument {key}: of full-size models only")
  world, task = extensions.world("shapes"), chosen["task"]
  names = world.classes(task, chosen["name"])
  config.targets = tuple({"task": task, "name": name} for name in names)
  config.concepts = world.erased_concepts(task, names, method)
  config.rows_per_group = world.rows_per_group(names)
  # The world's values replace defaults that suit full size.
  for key, value in world.hparams(method, task).items():
    config.hparams[key] = value
  said = ", ".join(f"“{name}”" for name in names)
  config.title = f"{method.upper()} erases {said}"


def _full(config, method: str, chosen: dict[str, str]):
  phrases, anchor, kind = _FULL[chosen["task"]]
  if chosen["list"] and chosen["name"]:
    raise ValueError("config arguments list and name: give one of them")
  if chosen["name"]:
    phrases = tuple(chosen["name"].split("+"))
  if chosen["list"]:
    phrases = lists.load(chosen["list"])
  if count := chosen["count"]:
    if not count.isdecimal():
      raise ValueError(f"config argument count={count!r} is no whole number")
    phrases = lists.sample(phrases, int(count), seed=0)
  anchor = chosen["anchor"] or anchor
  config.concepts = tuple(
    {"erase": phrase, "anchor": anchor, "preserve": (), "task": kind}
    for phrase in phrases
  )
  # The releases preserve the other artists if they erase some.
  if kind == "art" and method in ("uce", "rece"):
    if config.hparams.preset != "uce2025":
      config.preserve = "artists_1734"
  shown = ", ".join(phrases[:10]) + " ..." * (len(phrases) > 10)
  config.title = f"{method.upper()} erases {shown}"
  config.prompts.erased = tuple(f"a picture, {p}" for p in phrases[:10])
  config.prompts.others = ("a photo of a dog", "a painting of a forest")


def _defaults(method: str) -> ml_collections.ConfigDict:
  """All hyperparameters of the method, so that flags can override each."""
  cls = importlib.import_module(f"unlearning_jax.erasures.{method}").Hparams
  config, hints = ml_collections.ConfigDict(), typing.get_type_hints(cls)
  for name, value in dataclasses.asdict(cls()).items():
    kinds = set(typing.get_args(hints[name]))
    if value is None and not kinds & {str, int, float}:
      # No flag can express such a value.
      continue
    if value is None:
      kind = next(kind for kind in (int, str, float) if kind in kinds)
      value = ml_collections.config_dict.placeholder(kind)
    config[name] = value
  return config
