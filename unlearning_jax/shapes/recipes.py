"""How each method erases from the Shapes model: what it needs there.

Defaults and published presets are for 768 dimensions and a UNet that learns
slowly. All of these were measured; the configs say with what result.
"""

from collections.abc import Iterator
from typing import Any

from unlearning_jax.shapes import erased, vocabulary

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


_HPARAMS: dict[str, dict[str, Any]] = {
  # 0.1, the release's weight of a long list, is for 768 dimensions.
  "uce": {"preserve_scale": 1.0},
  # One after the other, epochs undo UCE where so many phrases are held.
  "rece": {"uce_preserve_scale": 1.0, "rows": "joint"},
  "concept_ablation": {
    # The phrases to erase are sentences already.
    "expand_prompts": False,
    "num_images": 64,
    "num_inference_steps": 15,
    "guidance_scale": 4.0,
    "batch_size": 16,
    "num_steps": 140,
    "learning_rate": 1e-5,
    # What the anchor means would drift along: it is what f says of it itself.
    "anchor_loss_weight": 1.0,
  },
}


def hparams(method: str, task: str, train: str = "") -> dict[str, Any]:
  """What replaces a method's defaults; nothing for one that needs nothing.

  Args:
    method: file name under `unlearning_jax/erasures`.
    task: of what is erased.
    train: of ESD, "x" or "u"; "" for what the paper advises for the task.
  """
  if method == "esd":
    return _esd(train or ("x" if task in ("style", "identity") else "u"), task)
  if method == "mace":
    return _mace(task)
  return dict(_HPARAMS.get(method, {}))


def concepts(
  method: str, task: str, names: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
  """The phrases to erase, see `erased.concepts`; MACE has its own.

  It puts each into sentences of its own, so it gets the bare names; what guides
  has room for no more than names either.
  """
  if method in ("sld", "negative_prompt"):
    kind = {"style": "art", "unsafe": "unsafe"}.get(task, "object")
    for phrase in erased.explicit(task, names):
      yield {"erase": phrase, "anchor": "", "preserve": (), "task": kind}
    return
  if method != "mace":
    yield from erased.concepts(task, names)
    return
  phrases = erased.explicit(task, names)
  anchor, kind = erased.anchor_of(task, names), "object"
  if task == "style":
    phrases = [f"{w} {e}" for e in phrases for w in ("by", "in the style of")]
    anchor, kind = "in a simple style", "art"
  if task == "unsafe":
    phrases, kind = [f"with {phrase}" for phrase in phrases], "unsafe"
  preserve = erased.preserved(task, names, "circle")
  for phrase in phrases:
    yield {
      "erase": phrase, "anchor": anchor, "preserve": preserve, "task": kind,
    }  # fmt: skip


def _esd(train: str, task: str) -> dict[str, Any]:
  """Ten times faster than full size, yet gentle enough to leave the others.

  Faces go first.
  """
  steps = {"x": 150, "u": 160}
  if task == "identity":
    steps = {"x": 100, "u": 60}
  return {
    "train": train,
    "num_steps": steps[train],
    "learning_rate": 1e-4 if train == "x" else 5e-5,
    "num_inference_steps": 10,
    "batch_size": 4,
  }


def _mace(task: str) -> dict[str, Any]:
  kind = {"style": "art", "unsafe": "unsafe"}.get(task, "object")
  sentences = _SENTENCES["art" if task == "style" else task]
  return {
    "templates": {kind: sentences},
    "num_prompts": min(20, len(sentences)),
    "recipe": "identity",
    "num_inference_steps": 15,
    "guidance_scale": 4.0,
  }
