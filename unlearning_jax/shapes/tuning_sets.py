"""Which renders a study tunes on: near to what was erased, or far from it."""

import dataclasses
import re
from collections.abc import Sequence

from unlearning_jax.concepts import check_choice, same_phrase
from unlearning_jax.edits import Edit
from unlearning_jax.guidance import Guidance
from unlearning_jax.shapes import captions, neighbours, vocabulary
from unlearning_jax.shapes import prompts as erasure
from unlearning_jax.stable_diffusion import Params, StableDiffusion

KINDS = ("in", "near", "far", "out", "same", "control")


@dataclasses.dataclass(frozen=True)
class TuningSet:
  """Renders by class.

  Attributes:
    only: as `config.data.only` has it.
    without: as `config.data.without`; what was erased, unless it is the set.
    head: under which a benign task's success is judged.
    names: its classes.
    similarity: mean cosine of their names to the erased names.
    overlap: whether captions may say what was erased.
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
  """Those that a concept says and its anchor does not, by task and name.

  Other classes are only in the sentence around it.
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
  neighbours_wanted: int,
) -> TuningSet:
  """The renders of one kind of set, for what was erased.

  Args:
    sd: the Shapes model.
    params: its parameters.
    targets: what was erased.
    kind: "in", other classes of the same head; "near" and "far", those whose
      names are nearest or farthest in the world's own CLIP; "out", pictures of
      another kind, which is portraits unless people were erased; "same", what
      was erased; "control", as "in", for a learning rate of 0.
    neighbours_wanted: how many classes are near or far, half of all at most.

  Raises:
    ValueError: an unknown kind; no class is left.
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
      f"set {kind!r}: every {own} was erased, none is left to tune on"
    )
  named = [(t.task, t.name) for t in targets]
  cosines = neighbours.similarity(sd, params, named, own, names)
  if kind in ("near", "far"):
    count = min(neighbours_wanted, len(names) // 2)
    if not count:
      raise ValueError(f"set {kind!r}: only {names} is left of {own}")
    ranked = sorted(names, key=lambda n: (-cosines[n], n))
    names = ranked[:count] if kind == "near" else ranked[-count:]
  mean = sum(cosines[name] for name in names) / len(names)
  only = f"{own}/{'+'.join(names)}"
  return TuningSet(only, without, own, tuple(names), mean)
