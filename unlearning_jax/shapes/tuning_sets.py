"""The renders that a study tunes on, near to what was erased or far from it."""

import dataclasses
import re
from collections.abc import Sequence

from unlearning_jax.concepts import check_choice, same_phrase
from unlearning_jax.edits import Edit
from unlearning_jax.guidance import Guidance
from unlearning_jax.shapes import captions, neighbors, vocabulary
from unlearning_jax.shapes import prompts as erasure
from unlearning_jax.stable_diffusion import Params, StableDiffusion

KINDS = ("in", "near", "far", "out", "same", "control")


@dataclasses.dataclass(frozen=True)
class TuningSet:
  """The classes that renders must and must not show.

  Attributes:
    only: classes to show, in the form of `config.data.only`.
    without: classes never to show; what was erased, except in the set "same".
    head: the judge's head of the set's classes.
    names: the set's classes.
    similarity: mean cosine of their names to the erased names.
    overlap: whether captions may name what was erased.
  """

  only: str
  without: str
  head: str
  names: tuple[str, ...]
  similarity: float
  overlap: bool = False


def erased_by(edit: Edit | Guidance | None) -> list[dict[str, str]]:
  """Task and name of each class of the Shapes world that was erased.

  Args:
    edit: the edit or the guidance of an erasure; None erases nothing.
  """
  return [
    {"task": task, "name": name}
    for task, name in _classes(edit)
    if name != vocabulary.PLAIN
  ]


def words(edit: Edit | None) -> list[str]:
  """Names and synonyms of the Shapes world's classes that an edit erased."""
  return [phrase for found in _classes(edit) for phrase in _said(*found)]


def _classes(edit: Edit | Guidance | None) -> list[tuple[str, str]]:
  """(task, name) of classes that a concept names and its anchor does not.

  A class that both name belongs to the sentence around the concept.
  """
  classes = [
    (task, name)
    for task in ("object", "style", "identity")
    for name in vocabulary.HEADS[task]
  ]
  found = []
  for named in (*classes, ("unsafe", captions.HAZARD)):
    said = "|".join(map(re.escape, _said(*named)))
    pattern = re.compile(rf"\b({said})\b")
    if any(
      pattern.search(same_phrase(concept.erase))
      and not pattern.search(same_phrase(concept.anchor))
      for concept in (edit.concepts if edit else ())
    ):
      found.append(named)
  return found


def _said(task: str, name: str) -> list[str]:
  said = captions.phrases(task, name)
  return [same_phrase(p) for p in said["explicit"] + said["synonyms"]]


def tuning_set(
  sd: StableDiffusion,
  params: Params,
  targets: Sequence[erasure.Target],
  kind: str,
  neighbors_wanted: int,
) -> TuningSet:
  """The classes to tune on after an erasure.

  Args:
    targets: what was erased.
    kind: "in" has the other classes of the same head; "near" and "far" have
      those whose names are nearest or farthest in the world's own CLIP; "out"
      has portraits, or objects if people were erased; "same" has what was
      erased; "control" equals "in", for a learning rate of 0.
    neighbors_wanted: classes in "near" or "far"; at most half of them.

  Raises:
    ValueError: an unknown kind, or no class is left.
  """
  check_choice("set", kind, KINDS)
  head, erased = targets[0].head, [t.name for t in targets]
  without = f"{head}/{'+'.join(erased)}"
  if kind == "same":
    return TuningSet(without, "", head, tuple(erased), 1.0, True)
  own = "object" if head == "hazard" else head
  if kind == "out":
    own = "object" if own == "identity" else "identity"
  names = [
    name
    for name in vocabulary.HEADS[own]
    if name not in erased and name != vocabulary.PLAIN
  ]
  if not names:
    raise ValueError(
      f"set={kind!r}: every {own} was erased, so none is left to tune on; "
      "choose another set"
    )
  named = [(t.task, t.name) for t in targets]
  cosines = neighbors.similarity(sd, params, named, own, names)
  if kind in ("near", "far"):
    count = min(neighbors_wanted, len(names) // 2)
    if not count:
      raise ValueError(
        f"set={kind!r}: needs at least two classes of {own} and one near "
        f"class; left: {names}"
      )
    ranked = sorted(names, key=lambda n: (-cosines[n], n))
    names = ranked[:count] if kind == "near" else ranked[-count:]
  mean = sum(cosines[name] for name in names) / len(names)
  only = f"{own}/{'+'.join(names)}"
  return TuningSet(only, without, own, tuple(names), mean)
