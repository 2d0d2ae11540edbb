"""Held-out prompts of the Shapes world, which show what an erasure did.

Prompts come in groups. They call the erased concept by its name (`explicit`),
by a synonym (`synonyms`), by a paraphrase (`paraphrases`), or only imply it by
a place (`implied`, for the unsafe task alone). `others` ask for none of the
erased concepts. All models draw a prompt from the same noise.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from unlearning_jax.concepts import check_choice
from unlearning_jax.shapes import captions, vocabulary

_NAMES = {
  "explicit": "explicit",
  "synonyms": "synonym",
  "paraphrases": "paraphrase",
}
# Task -> the judge's head for its classes.
HEADS = {
  "object": "object",
  "style": "style",
  "identity": "identity",
  "unsafe": "hazard",
}
# Image seeds are far from the seeds of all training renders.
_FIRST_SEED = 10_000_000


def erasable(task: str) -> tuple[str, ...]:
  """The classes of a task that can be erased; not "plain" and not "safe"."""
  classes = vocabulary.HEADS[HEADS[task]]
  return classes[1:] if task in ("style", "unsafe") else classes


@dataclasses.dataclass(frozen=True)
class Target:
  """A concept of the Shapes world: a class of one of the judge's heads."""

  task: str
  name: str

  def __post_init__(self):
    check_choice("task", self.task, HEADS)
    check_choice(f"{self.task} name", self.name, erasable(self.task))

  @property
  def head(self) -> str:
    """The judge's head."""
    return HEADS[self.task]

  @property
  def fixed(self) -> dict[str, Any]:
    """The fields of a scene that shows it."""
    return {self.head: True if self.task == "unsafe" else self.name}


def prompt_rows(
  targets: Sequence[Target], rows_per_group: int, other_rows: int, seed: int
) -> list[dict[str, Any]]:
  """Draws prompts, with the classes that each asks for.

  Args:
    targets: the erased concepts; without any, all prompts are `others`.
    rows_per_group: prompts of each target in each group.
    other_rows: prompts that ask for none of the targets.
    seed: draws scenes, words and image seeds.

  Returns:
    Rows of `metrics.accuracy`, with `id`, `group`, `prompt`, `seed`,
    `attributes` and `unsafe`.
  """
  drawn = []
  for target in targets:
    for group, names in _NAMES.items():
      drawn += [
        (group, *pair)
        for pair in captions.evaluation_prompts(
          "heldout", rows_per_group, seed, names, target.fixed
        )
      ]
    if target.task == "unsafe":
      implied = captions.evaluation_prompts(
        "heldout", rows_per_group, seed, fixed={"implied": True}
      )
      drawn += [("implied", *pair) for pair in implied]
  # Some ask for targets and are left out, so more are drawn than wanted.
  spare = captions.evaluation_prompts("heldout", 2 * other_rows + 64, seed + 1)
  free = [
    ("others", prompt, scene)
    for prompt, scene in spare
    if not any(_shows(target, scene) for target in targets)
  ]
  drawn += free[:other_rows]
  return [
    row(i, group, prompt, scene, seed)
    for i, (group, prompt, scene) in enumerate(drawn)
  ]


def _shows(target: Target, scene: vocabulary.Scene) -> bool:
  if target.task == "unsafe":
    return bool(scene.hazard) or bool(scene.implied)
  return getattr(scene, target.head) == target.name


def row(
  i: int, group: str, prompt: str, scene: vocabulary.Scene, seed: int
) -> dict[str, Any]:
  """The `i`-th row of `prompt_rows`, for a prompt and its scene."""
  attributes: dict[str, str | None] = {
    head: None if label < 0 else vocabulary.HEADS[head][label]
    for head, label in vocabulary.labels(scene).items()
  }
  if group == "implied":
    # The prompt does not name the hazard; the rate of hazards is what counts.
    attributes = {"hazard": vocabulary.HEADS["hazard"][1]}
  return {
    "id": f"{i:05d}-{group}",
    "group": group,
    "prompt": prompt,
    "seed": _FIRST_SEED + 100_000 * seed + i,
    "attributes": attributes,
    "unsafe": bool(scene.hazard) or bool(scene.implied),
  }
