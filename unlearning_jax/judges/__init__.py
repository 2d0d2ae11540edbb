"""Judges: frozen classifiers, images to scores. One judge, one file.

A module of this package, or `world.py` of an embedded world, has

  judge(**options) -> Judge
  NEEDS                        # weights and packages that it cannot do without

and whoever has one of their own names it as `package.module:judge`, which is a
`Judge` or a function that makes one. A judge scores; what a score means (the
likeliest label, or one above its threshold) is the judge's own decision too.

  load("nudenet")                # as its numbers are published
  load("nudenet~threshold=0.5")  # another one, with its own record
"""

import dataclasses
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from unlearning_jax import extensions
from unlearning_jax.concepts import check_choice
from unlearning_jax.judges import weights

Scores = Mapping[str, Float[np.ndarray, "n c"]]


class Judged(dict[str, Float[np.ndarray, "n c"]]):
  """Raw scores by head, and beside them what the judge found.

  Attributes:
    raw: of each image what scores leave out, as the boxes of a detector, in
      plain lists and dicts; empty where the scores are everything.
  """

  raw: Sequence[Any] = ()


class Target(NamedTuple):
  """A label that is looked for, under one of a judge's heads."""

  head: str
  label: str


def _all_labels(judged: Mapping[str, str]) -> str:
  return ", ".join(label for label in judged.values() if label)


def _nothing(
  raw: Sequence[Any], thresholds: Mapping[str, float]
) -> Mapping[str, int]:
  del raw, thresholds
  return {}


@dataclasses.dataclass(frozen=True, eq=False)
class Judge:
  """A named, versioned, hashed classifier.

  Attributes:
    name: what reports call it.
    score: uint8 RGB images (n, h, w, 3) to raw scores (n, c) of each head.
    labels: head -> its c labels, in the order of the scores.
    version: changes when the same weights decide otherwise.
    weights_hash: SHA-256 of the weights; "" where there are none.
    thresholds: label -> the score from which it is seen. Under a head none of
      whose labels has one, the likeliest is.
    image_size: height and width that it wants; None for any.
    sees: what becomes of an image before its network sees it: size, range,
      order of the channels.
    cannot_see: what it is blind to, in a sentence.
    describe: what `decide` found in an image, in words for a page.
    top: under a head without thresholds, an image shows a label that is among
      so many of the likeliest.
    far: how far a model's scores may lie from the base's before it has
      collapsed, see `metrics.collapse.distance`; None where nobody measured it.
    count: what papers count of `raw` of many images and thresholds, unit ->
      number; a detector's boxes are not its images.
  """

  name: str
  score: Callable[[UInt8[np.ndarray, "n h w 3"]], Scores]
  labels: Mapping[str, tuple[str, ...]]
  version: str = "1"
  weights_hash: str = ""
  thresholds: Mapping[str, float] = dataclasses.field(default_factory=dict)
  image_size: tuple[int, int] | None = None
  sees: str = "uint8 RGB as it is drawn"
  cannot_see: str = ""
  describe: Callable[[Mapping[str, str]], str] = _all_labels
  top: int = 1
  far: float | None = None
  count: Callable[[Sequence[Any], Mapping[str, float]], Mapping[str, int]] = (
    _nothing
  )

  def __call__(self, images: UInt8[np.ndarray, "n h w 3"]) -> Judged:
    """Raw scores of each head.

    Raises:
      ValueError: no images, none of the type or size that it wants, or scores
        of another shape than its labels.
    """
    images = np.asarray(images)
    size = self.image_size or images.shape[1:3]
    wrong = images.dtype != np.uint8 or images.shape[1:] != (*size, 3)
    if wrong or not len(images):
      raise ValueError(
        f"judge {self.name}: wants uint8 RGB images (n, {size[0]}, {size[1]}, "
        f"3), got {images.dtype} {images.shape}"
      )
    found = self.score(images)
    scores = Judged((h, np.asarray(s)) for h, s in found.items())
    scores.raw = getattr(found, "raw", ())
    shapes = {head: value.shape for head, value in scores.items()}
    wanted = {h: (len(images), len(names)) for h, names in self.labels.items()}
    if shapes != wanted:
      raise ValueError(f"judge {self.name}: scores {shapes}; want {wanted}")
    if not all(np.isfinite(value).all() for value in scores.values()):
      raise ValueError(f"judge {self.name}: scores hold NaN or infinity")
    return scores

  def find(self, target: Target) -> int:
    """The place of a target's label under its head.

    Raises:
      ValueError: the judge does not know the head or the label.
    """
    blind = f" (cannot see {self.cannot_see})" if self.cannot_see else ""
    what = f"judge {self.name}{blind}: "
    check_choice(f"{what}head", target.head, list(self.labels))
    names = self.labels[target.head]
    check_choice(what + target.head, target.label, names)
    return names.index(target.label)

  def decide(self, scores: Scores) -> list[dict[str, str]]:
    """What is seen in each image: head -> label, "" for none of them."""
    rows: list[dict[str, str]] = []
    for i in range(len(next(iter(scores.values())))):
      rows.append({h: self._label(h, s[i]) for h, s in scores.items()})
    return rows

  def shows(self, scores: Scores, target: Target) -> list[tuple[bool, float]]:
    """Whether each image shows a target, and its score.

    Raises:
      ValueError: as `find`.
    """
    index, values = self.find(target), scores[target.head]
    threshold = self.thresholds.get(target.label)
    likeliest = np.argsort(-values, axis=1, kind="stable")[:, : self.top]
    seen = (likeliest == index).any(axis=1)
    if threshold is not None:
      seen = values[:, index] >= threshold
    pairs = zip(seen, values[:, index], strict=True)
    return [(bool(one), float(score)) for one, score in pairs]

  def _label(self, head: str, values: np.ndarray) -> str:
    names = self.labels[head]
    if not any(name in self.thresholds for name in names):
      return names[int(values.argmax())]
    over = [
      (float(v), name)
      for v, name in zip(values, names, strict=True)
      if v >= self.thresholds.get(name, np.inf)
    ]
    return max(over, key=lambda one: one[0])[1] if over else ""

  @property
  def identity(self) -> str:
    """What a record keeps of it: another one may not judge the same run."""
    known = [self.weights_hash] if self.weights_hash else []
    if not known or self.version != "1":
      known.append(f"version {self.version}")
    if self.top != 1:
      known.append(f"top {self.top}")
    if self.thresholds:
      known.append(f"thresholds {json.dumps(self.thresholds, sort_keys=True)}")
    return " ".join(known)


def names() -> tuple[str, ...]:
  """Every judge that ships: modules of this package, and the worlds' own."""
  return (*_modules(), *extensions.worlds())


def load(name: str, **options: Any) -> Judge:
  """A judge by its name, or a user's own, `package.module:name`.

  Args:
    name: as `nudenet`, or with options, `nudenet~threshold=0.5,channels=rgb`;
      several values are parted by `|`.
    **options: more of them, as `judges_dir`, where weights lie.

  Raises:
    ValueError: no such judge or option, with the nearest; what the name stands
      for is not a judge; weights or a package that it needs are missing.
  """
  base = str(name).partition("~")[0]
  own = ":" in base
  judge: Any = extensions.named(
    "judge", base if own else _spelled(base), names()
  )
  judge = judge if own else module(base).judge
  if callable(judge) and not isinstance(judge, Judge):
    given = extensions.options("judge", name, judge, options)
    judge = judge(**given) if own else _kept(base, judge, given)
  if not isinstance(judge, Judge):
    raise ValueError(f"judge={name!r}: is {type(judge).__name__}, not a Judge")
  return judge


# The judges that were read last. A run asks for its judge several times, and
# CLIP's L/14 is 1.7 GB.
_KEPT: dict[Any, Judge] = {}
_MOST_KEPT = 2


def _kept(name: str, made_by: Callable, given: Mapping[str, Any]) -> Judge:
  """A judge that ships, read once while its files stay as they are."""
  key = (_spelled(name), *sorted(given.items()), *weights.stamp(given))
  if key not in _KEPT:
    made = made_by(**given)
    while len(_KEPT) >= _MOST_KEPT:
      _KEPT.pop(next(iter(_KEPT)))
    _KEPT[key] = made
  return _KEPT[key]


def module(name: str) -> Any:
  """The module of a judge that ships; it has `judge`, and perhaps `NEEDS`."""
  name = _spelled(name)
  if name in extensions.worlds():
    return extensions.world(name)
  return _modules()[name]


def _spelled(name: str) -> str:
  return name.replace("_", "-")


def _modules() -> dict[str, Any]:
  found = {
    _spelled(name): importlib.import_module(f"{__name__}.{name}")
    for name in extensions.modules(__name__)
  }
  return {name: one for name, one in found.items() if hasattr(one, "judge")}
