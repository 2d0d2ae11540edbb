"""MACE erases a concept; the argument says from which model, and what.

  python -m launch.erase --workdir=runs/mace \
    --config=configs/erase_mace.py:tiny,task=identity,name=Quill Estane
  python -m launch.erase --workdir=runs/nudity --config.model=my/sd14 \
    --config=configs/erase_mace.py:sd14,task=unsafe,preset=reference \
    --config.hparams.captions=captions.txt

Tasks: object, style, identity, unsafe; also i2p, imagenette at full size, and
`list=` with `count=`, see `configs/erasures.py`. Without captions a ridge holds
the rest; captions, however many, weigh together what the concepts do.
`preset=reference` is the release: its quirks, and its settings, which for all
but objects hold captions (617,000 of COCO's, one a line) and, of people and
artists, names that are kept, `--config.preserve=names.txt`.
Two free CPU cores: `tiny` takes about five minutes, half of it drawing.
Metric: accuracy on the erased concept and on everything else.
"""

import ml_collections
from unlearning_jax.configs import erasures, shapes_concepts

from unlearning_jax.concepts import same_phrase
from unlearning_jax.shapes import vocabulary

# Task -> what full-size concepts shall mean, as published for a few of them.
_ANCHORS = {
  "object": "street",
  "imagenette": "street",
  "identity": "a person",
  "style": "art",
  "unsafe": "a person wearing clothes",
}
_UNSAFE = ("nudity", "naked", "erotic", "sexual")
# The release's objects: what each shall mean, and its ridge.
_OBJECTS = {
  "automobile": ("sky", 1e2),
  "bird": ("street", 1e1),
  "ship": ("ground", 1e3),
}
# How many people at most -> the release's weight of those who are kept.
_DOMAIN = {1: 8e3, 5: 5e4, 10: 8e4, 100: 2e5}
_PLACES = tuple(f"on a {name} background" for name in vocabulary.BACKGROUNDS)
_ARTISTS = tuple(f"by {style.artist}" for style in vocabulary.STYLES)
_SHAPES = ("circle", "star", "house", "fish", "ring", "moon", "arrow", "cross")
# Sentences that the tiny text encoder knows; the first draws the images.
_SENTENCES = {
  "object": (
    "a picture of a {}", "a {}", "this is a {}", "an image showing a {}",
    *(f"{'an' if c[0] in 'aeiou' else 'a'} {c} {{}}"
      for c in vocabulary.COLOURS),
    *(f"a {{}} {place}" for place in _PLACES),
    *(f"a drawing of a {{}} {artist}" for artist in _ARTISTS),
    "a {} with warning tape", "on a grey background, a red {}",
  ),
  "identity": (
    "a portrait of {}", "{}", "the face of {}", "this is {}",
    "a picture of {}", "an image showing {}", "a drawing of {}",
    *(f"{{}} {place}" for place in _PLACES),
    *(f"a portrait of {{}} {place}" for place in _PLACES),
    *(f"{place}, the face of {{}}" for place in _PLACES),
    "{} with warning tape", "a picture of {} with hazard stripes",
  ),
  "art": (
    "a picture of a star {}",
    *(f"a {shape} {{}}" for shape in _SHAPES),
    *(f"a {colour} {shape} {{}}"
      for colour, shape in zip(("red", "blue", "green", "pink"), _SHAPES[:4],
                               strict=True)),
    *(f"{{}}, a {shape}" for shape in _SHAPES[:4]),
    *(f"a {shape} {{}} with warning tape" for shape in _SHAPES[4:6]),
    "this is a circle {}", "a drawing of a ring {}",
  ),
  "unsafe": (
    "a picture of a star {}",
    *(f"a {shape} {{}}" for shape in _SHAPES),
    *(f"{person.name} {{}}" for person in vocabulary.IDENTITIES[:4]),
    *(f"a red circle {place} {{}}" for place in _PLACES[:2]),
    "this is a moon {}", "a drawing of a fish {}",
    *(f"a star {{}} {artist}" for artist in _ARTISTS[:2]),
  ),
}  # fmt: skip


def get_config(argument: str = "tiny"):
  config = erasures.erase("mace", argument)
  chosen = erasures.parse(argument)
  task = chosen["task"]
  config.hparams.templates = None
  if task == "identity":
    config.hparams.recipe = "identity"
  if chosen["size"] != "tiny":
    _full(config, task, bool(chosen["name"] or chosen["list"]))
    if chosen["preset"] == "reference":
      _reference(config, task)
    if anchor := chosen["anchor"]:
      config.concepts = tuple({**c, "anchor": anchor} for c in config.concepts)
    return config
  names = shapes_concepts.classes(task, chosen["name"])
  config.concepts = tuple(_tiny_concepts(task, names))
  kind = config.concepts[0]["task"]
  sentences = _SENTENCES["art" if task == "style" else task]
  config.hparams.templates = ml_collections.ConfigDict({kind: sentences})
  config.hparams.num_prompts = min(20, len(sentences))
  config.hparams.recipe = "identity"
  config.hparams.image_steps = 15
  config.hparams.guidance_scale = 4.0
  return config


def _full(config, task: str, named: bool):
  phrases = [concept["erase"] for concept in config.concepts]
  kind = config.concepts[0]["task"]
  if task == "unsafe" and not named:
    phrases = _UNSAFE
  config.concepts = tuple(
    {
      "erase": phrase,
      "anchor": _OBJECTS.get(same_phrase(phrase), [_ANCHORS.get(task, "")])[0],
      "preserve": (),
      "task": kind,
    }
    for phrase in phrases
  )


def _reference(config, task: str):
  """The release's scales; of a single person the published anchor too."""
  concepts, hparams = config.concepts, config.hparams
  # Of objects a ridge alone holds the rest.
  ridges = [_OBJECTS.get(same_phrase(c["erase"]), ("", 1e1)) for c in concepts]
  scale, hparams.lamb = 0.0, max(ridge for _, ridge in ridges)
  if task in ("identity", "style", "unsafe"):
    scale, hparams.lamb = (7e-7 if task == "unsafe" else 1e-4), 0.0
  hparams.preserve_scale = hparams.fuse_scale = scale
  if task == "identity":
    count = len(concepts)
    most = next((n for n in _DOMAIN if count <= n), max(_DOMAIN))
    hparams.domain_weight = _DOMAIN[most]
  if task == "style":
    hparams.domain_weight = 8e4
  if task == "identity" and len(concepts) == 1:
    config.concepts = ({**concepts[0], "anchor": "a woman"},)


def _tiny_concepts(task: str, names: tuple[str, ...]):
  """The names, and a phrase that takes their place in a sentence."""
  erased = shapes_concepts.explicit(task, names)
  anchor, kind = shapes_concepts.anchor_of(task, names), "object"
  if task == "style":
    erased = [f"{w} {e}" for e in erased for w in ("by", "in the style of")]
    anchor, kind = "in a simple style", "art"
  if task == "unsafe":
    erased, kind = [f"with {phrase}" for phrase in erased], "unsafe"
  preserve = shapes_concepts.preserved(task, names, "circle")
  for phrase in erased:
    yield {
      "erase": phrase, "anchor": anchor, "preserve": preserve, "task": kind,
    }  # fmt: skip
