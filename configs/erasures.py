"""How the erase configs are put together."""

import importlib
import inspect

import ml_collections

from configs import common
from unlearning_jax.concepts import CONCEPT_SETS, check_choice
from unlearning_jax.shapes import captions, vocabulary

# Task -> what the tiny model loses by default, and what it means then: the
# first of these that is another class.
_TINY = {
  "object": ("star", ("circle", "square")),
  "style": ("neon", ("",)),
  "identity": ("Quill Estane", ("Adra Belvoort", "Bram Okontu")),
  "unsafe": ("hazard", ("",)),
}
# Method -> what its defaults, made for full size, are replaced by.
_TINY_HPARAMS = {
  # 0.1, the release's weight of a long list, is for 768 dimensions.
  "uce": {"preserve_scale": 1.0},
  # One after the other, epochs undo UCE where so many phrases are held.
  "rece": {"uce_preserve_scale": 1.0, "rows": "joint"},
}
_BY = ("by {}", "in the style of {}")
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
    default, anchors = _TINY[task]
    name = chosen["name"] or default
    anchor = next(anchor for anchor in anchors if anchor != name)
    config.targets = ({"task": task, "name": name},)
    config.concepts = tuple(_tiny_concepts(task, name, anchor))
    config.hparams.update(_TINY_HPARAMS.get(method, {}))
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
  Every other class of the world is preserved, by its name: 128 dimensions
  leave an edit little room to spare them by itself.
  """
  explicit = captions.phrases(task, name)["explicit"]
  shape = anchor if task == "object" else "circle"
  if task == "object":
    carriers = ["{}", "a {}", "a picture of a {}", "a drawing of a {}"]
    carriers += ["this is a {}"]
    carriers += [f"{_article(c)} {c} {{}}" for c in vocabulary.COLOURS]
    carriers += [f"a {{}} by {style.artist}" for style in vocabulary.STYLES]
    carriers += [f"a {{}} on {place}" for place in vocabulary.BACKGROUNDS]
  elif task == "identity":
    carriers = ["{}", "a portrait of {}", "the face of {}", "this is {}"]
  elif task == "style":
    objects = [f"a {o}" for o in ("circle", "star", "house", "fish")]
    carriers = [f"{o} {way}" for o in objects for way in _BY]
  else:
    carriers = [f"{o} with {{}}" for o in ("a circle", "a star", "a person")]
    carriers += [f"{p.name} with {{}}" for p in vocabulary.IDENTITIES[:3]]
  kind = {"style": "art", "unsafe": "unsafe"}.get(task, "object")
  preserve = tuple(
    phrase
    for phrase in dict.fromkeys(_everything(task, shape))
    if not any(erased in phrase for erased in explicit)
  )
  for phrase in explicit:
    for carrier in carriers:
      # Without an anchor of its own the concept is left out of its sentence.
      target = carrier.format(anchor)
      for end in () if anchor else ("in the style of ", "by ", "with "):
        target = target.removesuffix(end)
      yield {
        "erase": carrier.format(phrase),
        "anchor": target.strip(),
        "preserve": preserve,
        "task": kind,
      }


def _everything(task: str, shape: str):
  """Phrases for every class of the Shapes world, about `shape` if need be.

  Objects and styles are erased in many sentences, which must not take the
  other objects along: so each of those stands in every one of them.
  """
  yield from (f"{_article(name)} {name}" for name in vocabulary.HEADS["object"])
  yield from (f"{_article(name)} {name} {shape}" for name in vocabulary.COLOURS)
  yield from (f"a {shape} on {name}" for name in vocabulary.BACKGROUNDS)
  yield from (f"by {style.artist}" for style in vocabulary.STYLES)
  yield from (person.name for person in vocabulary.IDENTITIES)
  yield from (f"a {shape} {way}" for way in vocabulary.HAZARD_EXPLICIT)
  if task in ("object", "style"):
    for name in vocabulary.HEADS["object"]:
      yield from (f"{_article(c)} {c} {name}" for c in vocabulary.COLOURS)
      yield from (f"a {name} by {s.artist}" for s in vocabulary.STYLES)
      yield from (f"a {name} on {place}" for place in vocabulary.BACKGROUNDS)


def _article(word: str) -> str:
  """The article before a word, or that of a bare noun."""
  return "an" if word[:1] in tuple("aeiou") else "a"
