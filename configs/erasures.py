"""Builds the erase configs."""

import dataclasses
import importlib
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any

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
  name    what to erase, several joined by "+", "," or ";"; in quotes one that
          holds such a mark; on tiny, classes of the Shapes world, or `all`
          identities
  list    full size: a published list (`unlearning_jax.lists`) or a text file
  count   full size: how many of the list, drawn with seed 0
  anchor  full size: what they mean afterwards, one for all or one for each
  preserve  full size: phrases to preserve, or a list as in `list`
  preset  a preset of the method
  """
  keys = ("name", "list", "count", "anchor", "preserve", "preset")
  return common.parse(
    argument, size="tiny", task="object", **dict.fromkeys(keys, "")
  )


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
  for key in ("list", "count", "anchor", "preserve"):
    if chosen[key]:
      raise ValueError(f"config argument {key}: of full-size models only")
  world, task = extensions.world("shapes"), chosen["task"]
  names = world.classes(task, "+".join(common.phrases(chosen["name"])))
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
    phrases = common.phrases(chosen["name"])
  if chosen["list"]:
    phrases = lists.load(chosen["list"])
  if count := chosen["count"]:
    if not count.isdecimal():
      raise ValueError(f"config argument count={count!r} is no whole number")
    phrases = lists.sample(phrases, int(count), seed=0)
  listed = _is_list(chosen["preserve"])
  kept = () if listed else common.phrases(chosen["preserve"])
  config.concepts = tuple(
    {"erase": phrase, "anchor": anchor, "preserve": kept, "task": kind}
    for phrase in phrases
  )
  config.concepts = anchored(config.concepts, chosen["anchor"])
  # The releases preserve the other artists if they erase some.
  if kind == "art" and method in ("uce", "rece"):
    if config.hparams.preset != "uce2025":
      config.preserve = "artists_1734"
  if chosen["preserve"]:
    config.preserve = chosen["preserve"] if listed else ""
  shown = ", ".join(phrases[:10]) + " ..." * (len(phrases) > 10)
  config.title = f"{method.upper()} erases {shown}"
  config.prompts.erased = tuple(f"a picture, {p}" for p in phrases[:10])
  config.prompts.others = ("a photo of a dog", "a painting of a forest")


def anchored(
  concepts: Sequence[Mapping[str, Any]], text: str
) -> tuple[dict[str, Any], ...]:
  """Concepts with the anchors of the argument `anchor`; as they are for "".

  Raises:
    ValueError: there are neither one anchor nor as many as concepts.
  """
  anchors = common.phrases(text) or tuple(c["anchor"] for c in concepts)
  if len(anchors) not in (1, len(concepts)):
    raise ValueError(
      f"config argument anchor={text!r}: {len(anchors)} anchors for "
      f"{len(concepts)} concepts; give one, or one each"
    )
  anchors *= len(concepts) // len(anchors)
  pairs = zip(concepts, anchors, strict=True)
  return tuple({**concept, "anchor": anchor} for concept, anchor in pairs)


def _is_list(text: str) -> bool:
  return text in lists.names() or text.endswith(".txt")


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
