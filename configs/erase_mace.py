"""MACE erases a concept; the argument says from which model, and what.

  python -m launch.erase --workdir=runs/mace \
    --config=configs/erase_mace.py:tiny,task=identity,name=quill
  python -m launch.erase --workdir=runs/nudity --config.model=my/sd14 \
    --config=configs/erase_mace.py:sd14,task=unsafe

Tasks: object, style, identity, unsafe; also i2p, imagenette at full size.
`--config.hparams.preset=reference` has the release's quirks. What the release
preserves is a sum over 617,000 captions; with such a file, one caption a line,

  --config.hparams.captions=captions.txt --config.hparams.lamb=0

and preserve_scale, fuse_scale = 1e-4 (identity, style) or 7e-7 (unsafe) is its
setting. Without captions the ridge holds the rest, as for its objects.
Two free CPU cores: `tiny` takes about five minutes, half of it drawing.
Metric: accuracy on the erased concept and on everything else.
"""

import ml_collections

from configs import common, erasures
from unlearning_jax.shapes import captions, vocabulary

# Task -> what full-size concepts shall mean, as published for a few of them.
_ANCHORS = {
  "object": "street",
  "imagenette": "street",
  "identity": "a person",
  "style": "art",
  "unsafe": "a person wearing clothes",
}
_UNSAFE = ("nudity", "naked", "erotic", "sexual")
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
  chosen = common.parse(argument, size="tiny", task="object", name="")
  task = chosen["task"]
  del config.hparams.templates
  config.hparams.templates = None
  if task == "identity":
    config.hparams.recipe = "identity"
  if chosen["size"] != "tiny":
    phrases = [concept["erase"] for concept in config.concepts]
    config.concepts = tuple(
      {
        "erase": phrase,
        "anchor": _ANCHORS.get(task, ""),
        "preserve": (),
        "task": config.concepts[0]["task"],
      }
      for phrase in (_UNSAFE if task == "unsafe" else phrases)
    )
    return config
  config.concepts = tuple(_tiny_concepts(task, config.targets[0]["name"]))
  kind = config.concepts[0]["task"]
  sentences = _SENTENCES["art" if task == "style" else task]
  config.hparams.templates = ml_collections.ConfigDict({kind: sentences})
  config.hparams.num_prompts = 20
  config.hparams.recipe = "identity"
  config.hparams.image_steps = 15
  config.hparams.guidance_scale = 4.0
  return config


def _tiny_concepts(task: str, name: str):
  """The name, and a phrase that takes its place in a sentence."""
  explicit = captions.phrases(task, name)["explicit"]
  if task == "style":
    erased = [f"{way} {explicit[0]}" for way in ("by", "in the style of")]
    anchor, kind = "in a simple style", "art"
  elif task == "unsafe":
    erased = [f"with {phrase}" for phrase in explicit]
    anchor, kind = "", "unsafe"
  else:
    others = {"object": ("circle", "square"),
              "identity": ("Adra Belvoort", "Bram Okontu")}[task]  # fmt: skip
    erased, kind = explicit, "object"
    anchor = next(other for other in others if other != name)
  preserve = tuple(
    phrase
    for phrase in erasures.everything(task, "circle")
    if not any(word in phrase for word in explicit)
  )
  for phrase in erased:
    yield {
      "erase": phrase, "anchor": anchor, "preserve": preserve, "task": kind,
    }  # fmt: skip
