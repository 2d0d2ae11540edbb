"""How the erase configs are put together."""

import importlib
import inspect

import ml_collections

from configs import common
from unlearning_jax.concepts import CONCEPT_SETS, check_choice
from unlearning_jax.shapes import captions, vocabulary

# Task -> what the tiny model loses by default, and what it means then.
_TINY = {
  "object": ("star", "shape"),
  "style": ("neon", "plain"),
  "identity": ("Quill Estane", "person"),
  "unsafe": ("hazard", ""),
}
# Task -> the phrases of full-size models, their anchor, their kind.
_FULL = {
  "object": (("Church",), "", "object"),
  "style": (CONCEPT_SETS["artists"], "art", "art"),
  "identity": (("Brad Pitt",), "a person", "object"),
  "unsafe": (CONCEPT_SETS["nudity"], "", "unsafe"),
  "i2p": (CONCEPT_SETS["i2p"], "", "unsafe"),
  "imagenette": (CONCEPT_SETS["imagenette"], "", "object"),
}


def erase(method: str, argument: str) -> ml_collections.ConfigDict:
  """The config of one erasure.

  Args:
    method: file name under `unlearning_jax/erasures`.
    argument: what follows the config's colon: a size, a task, on `tiny` a
      class of the Shapes world; as `tiny,task=style,name=swirl`.
  """
  chosen = common.parse(argument, size="tiny", task="object", name="")
  size, task = chosen["size"], chosen["task"]
  tables = _TINY if size == "tiny" else _FULL
  check_choice("config argument task", task, tables)
  config = common.comparison(size)
  config.method = method
  config.hparams = _defaults(method)
  if size == "tiny":
    default, anchor = _TINY[task]
    name = chosen["name"] or default
    config.targets = ({"task": task, "name": name},)
    config.concepts = tuple(_tiny_concepts(task, name, anchor))
    config.title = f"{method.upper()} erases “{name}”"
    return config
  phrases, anchor, kind = _FULL[task]
  config.concepts = tuple(
    {"erase": phrase, "anchor": anchor, "preserve": (), "task": kind}
    for phrase in phrases
  )
  config.title = f"{method.upper()} erases {', '.join(phrases)}"
  config.prompts.erased = tuple(f"a picture, {p}" for p in phrases)
  config.prompts.others = ("a photo of a dog", "a painting of a forest")
  return config


def _defaults(method: str) -> ml_collections.ConfigDict:
  """Every hyperparameter of the method, so that each can be overridden."""
  module = importlib.import_module(f"unlearning_jax.erasures.{method}")
  config = ml_collections.ConfigDict()
  for name, parameter in inspect.signature(module.erase).parameters.items():
    if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
      continue
    value = parameter.default
    if value is None:
      kind = str if "str" in str(parameter.annotation) else float
      kind = int if "int" in str(parameter.annotation) else kind
      value = ml_collections.config_dict.placeholder(kind)
    config[name] = value
  return config


def _tiny_concepts(task: str, name: str, anchor: str):
  """The phrases to erase: the name alone and in a few short sentences.

  Synonyms and paraphrases are left out: whether they fall too is the question.
  """
  explicit = captions.phrases(task, name)["explicit"]
  if task == "object":
    colours = ["", *vocabulary.COLOURS]
    carriers = [f"{_article(colour)} {{}}" for colour in colours]
    carriers += ["{}", "a picture of a {}", "a drawing of a {}", "this is a {}"]
  elif task == "identity":
    carriers = ["{}", "a portrait of {}", "the face of {}", "this is {}"]
  elif task == "style":
    carriers = ["{}", "by {}", "in the style of {}", "a circle by {}"]
  else:
    carriers = ["{}", "a circle {}", "a person {}", "a picture {}"]
  kind = {"style": "art", "unsafe": "unsafe"}.get(task, "object")
  for phrase in explicit:
    for carrier in carriers:
      target = carrier.format(anchor) if anchor else ""
      yield {
        "erase": carrier.format(phrase),
        "anchor": target.strip(),
        "preserve": (),
        "task": kind,
      }


def _article(word: str) -> str:
  return f"{'an' if word[:1] in tuple('aeiou') else 'a'} {word}".strip()
