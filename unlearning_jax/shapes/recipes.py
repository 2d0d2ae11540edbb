"""Each erasure's hyperparameters and phrases on the Shapes model.

Defaults and published presets are for text states of 768 dimensions and a UNet
that learns slowly. Those here were measured; the configs give the results.
"""

from collections.abc import Iterator
from typing import Any

from unlearning_jax.shapes import erased, vocabulary
from unlearning_jax.shapes.captions import with_article

_PLACES = tuple(f"on a {name} background" for name in vocabulary.BACKGROUNDS)
_ARTISTS = tuple(f"by {style.artist}" for style in vocabulary.STYLES)
_SHAPES = ("circle", "star", "house", "fish", "ring", "moon", "arrow", "cross")
# MACE's templates, which the tiny text encoder knows; the first draws images.
_SENTENCES = {
  "object": (
    "a picture of a {}", "a {}", "this is a {}", "an image showing a {}",
    *(with_article(f"{c} {{}}") for c in vocabulary.COLOURS),
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
  # The release's weight of a long list, 0.1, suits 768 dimensions.
  "uce": {"preserve_scale": 1.0},
  # Sequential epochs undo UCE if so many phrases are held.
  "rece": {"uce_preserve_scale": 1.0, "rows": "joint"},
  "concept_ablation": {
    # The phrases to erase are already sentences.
    "expand_prompts": False,
    "num_images": 64,
    "num_inference_steps": 15,
    "guidance_scale": 4.0,
    "batch_size": 16,
    "num_steps": 140,
    "learning_rate": 1e-5,
    # f provides the anchor's target, so without this the anchor would drift.
    "anchor_loss_weight": 1.0,
  },
  # Of a size that trains in minutes.
  "advunlearn": {
    "num_inference_steps": 10,
    "num_trajectories": 32,
    "num_steps": 150,
    "warmup_steps": 30,
    "learning_rate": 1e-4,
    "attack_steps": 4,
    "attack_learning_rate": 1e-2,
    "retain_weight": 1.0,
    "retain_batch": 4,
    "batch_size": 2,
  },
  "salun": {
    "num_images": 64,
    "num_inference_steps": 15,
    "guidance_scale": 4.0,
    "batch_size": 16,
    "num_steps": 140,
    "learning_rate": 3e-5,
  },
  "erasediff": {
    "num_images": 64,
    "num_inference_steps": 15,
    "guidance_scale": 4.0,
    "batch_size": 16,
    "epochs": 35,
    "learning_rate": 3e-5,
  },
  "resalign": {
    "lanes": ("sgd/1e-2/5/0", "adam/1e-3/5/1", "adam/1e-3/3/2"),
    "num_images": 64,
    "num_inference_steps": 15,
    "guidance_scale": 4.0,
    "batch_size": 8,
    "concept_batch": 8,
    "curvature_batch": 2,
    "terms": 3,
    # With the published weights, 1.6 and 2, other objects go with the concept.
    "remain_weight": 6.0,
    "last_remain_weight": 7.5,
    "num_steps": 90,
    "learning_rate": 1e-3,
  },
  # The wrapped method has the values of its own entry.
  "meta_unlearning": {
    "num_images": 32,
    "num_inference_steps": 15,
    "guidance_scale": 4.0,
    "batch_size": 4,
    "lanes": ("adam/1e-4/3/0",),
    "num_steps": 60,
    "learning_rate": 3e-5,
  },
  "spm": {
    "num_steps": 150,
    "learning_rate": 1e-2,
    "anchor_weight": 100.0,
    "num_inference_steps": 10,
    "batch_size": 4,
    "anchors": 2,
  },
  "fmn": {
    "words": 0,
    "num_images": 32,
    "num_inference_steps": 15,
    "guidance_scale": 4.0,
    "batch_size": 8,
    "num_steps": 100,
    "learning_rate": 3e-5,
  },
}


# A sentence around a bare name, for FMN.
_FMN = {
  "object": "a picture of a {}",
  "identity": "a portrait of {}",
  "style": "a star by {}",
  "unsafe": "a star with {}",
}


def hparams(method: str, task: str, train: str = "") -> dict[str, Any]:
  """The hyperparameters that replace a method's defaults.

  Args:
    method: the erasure's name.
    task: the task of the erased classes.
    train: ESD's "x" or "u"; "" for what its paper advises for the task.
  """
  if method == "esd":
    return _esd(train or ("x" if task in ("style", "identity") else "u"), task)
  if method == "mace":
    return _mace(task)
  if method == "meta_unlearning":
    return _HPARAMS[method] | {"wrapped_recipe": tuple(_of_wrapped(task))}
  if method == "fmn":
    return _HPARAMS["fmn"] | {"template": _FMN[task]}
  return dict(_HPARAMS.get(method, {}))


def concepts(
  method: str, task: str, names: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
  """The phrases to erase, as fields of `Concept`; see `erased.concepts`.

  MACE and FMN get bare names, which they put into sentences themselves.
  Guidance gets bare names too: its one prompt has no room for sentences.
  AdvUnlearn draws what it retains, so it gets fewer sentences to preserve.
  """
  kind = erased.KINDS[task]
  if method in ("sld", "negative_prompt", "fmn"):
    for phrase in erased.explicit(task, names):
      yield {"erase": phrase, "anchor": "", "preserve": (), "task": kind}
    return
  if method == "advunlearn":
    named = erased.explicit(task, names)
    kept = [p for p in erased.everyday() if not any(n in p for n in named)]
    for concept in erased.concepts(task, names):
      yield {**concept, "preserve": tuple(kept)}
    return
  if method != "mace":
    yield from erased.concepts(task, names)
    return
  phrases = erased.explicit(task, names)
  anchor = erased.anchor_of(task, names)
  if task == "style":
    phrases = [f"{w} {e}" for e in phrases for w in ("by", "in the style of")]
    anchor = "in a simple style"
  if task == "unsafe":
    phrases = [f"with {phrase}" for phrase in phrases]
  preserve = erased.preserved(task, names, "circle")
  for phrase in phrases:
    yield {
      "erase": phrase, "anchor": anchor, "preserve": preserve, "task": kind,
    }  # fmt: skip


def _of_wrapped(task: str) -> Iterator[str]:
  """What Meta-Unlearning gives the methods that it may wrap."""
  for method in ("esd", "concept_ablation", "salun", "erasediff", "rece"):
    for name, value in hparams(method, task).items():
      yield f"{method}.{name}={value!r}"


def _esd(train: str, task: str) -> dict[str, Any]:
  """Learning rates above the paper's, with few enough steps to spare others.

  Identities need the fewest.
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
  sentences = _SENTENCES["art" if task == "style" else task]
  return {
    "templates": {erased.KINDS[task]: sentences},
    "num_prompts": min(20, len(sentences)),
    "recipe": "identity",
    "num_inference_steps": 15,
    "guidance_scale": 4.0,
  }
