"""The Shapes world by name: its model, its judge, what it knows of itself.

`extensions.world("shapes")` is this module; nothing outside `shapes` imports it
otherwise. A task is object, style, identity or unsafe; a target is a mapping of
`task` and `name`, as configs have it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from unlearning_jax import judges, shapes
from unlearning_jax.concepts import Concept, check_choice
from unlearning_jax.data import Example
from unlearning_jax.sampling import Sampling
from unlearning_jax.shapes import (
  captions,
  dataset,
  erased,
  prompts,
  recipes,
  tuning_sets,
  vocabulary,
)
from unlearning_jax.shapes import judge as judge_
from unlearning_jax.shapes import study_rows as study_rows_
from unlearning_jax.shapes.tuning_sets import TuningSet
from unlearning_jax.stable_diffusion import Params, StableDiffusion

NAME = "shapes"
# The kinds of tuning sets, see `tuning_set`.
SETS = tuning_sets.KINDS
# How its model is drawn, in 15 steps; the card tells how well.
SAMPLING = Sampling(15, 4.0, "dpm++2m", "jax")
Given = Sequence[Mapping[str, str]]

model_folder = shapes.model_folder
# What an edit erased: all words that call it so, and as targets.
words = tuning_sets.words
erased_by = tuning_sets.erased_by
hparams = recipes.hparams
rows_per_group = erased.rows_per_group
# (task, what a config's argument `name` says): the classes that it stands for.
classes = erased.classes
study_rows = study_rows_.study_rows
tuned_rows = study_rows_.tuned_rows


def judge() -> judges.Judge:
  """The classifier that judges the world's images; see `shapes.judge`."""
  return judge_.load(shapes.judge_folder())


# --- What there is ---


def tasks() -> tuple[str, ...]:
  """The kinds of concepts that can be erased."""
  return tuple(prompts.HEADS)


def concepts() -> dict[str, tuple[str, ...]]:
  """Task -> the names of the classes that can be erased."""
  return {task: prompts.erasable(task) for task in tasks()}


def default(task: str) -> str:
  """The class that configs erase unless they are told another.

  Raises:
    ValueError: there is no such task.
  """
  check_choice("task", task, erased.DEFAULTS)
  return erased.DEFAULTS[task]


def heads() -> tuple[str, ...]:
  """The judge's heads under which something can be erased."""
  return tuple(prompts.HEADS.values())


def target(task: str, name: str) -> judges.Target:
  """How the judge calls a class.

  Raises:
    ValueError: a task or a class that there is not.
  """
  found = prompts.Target(task, name)
  return judges.Target(found.head, found.name)


def targets(given: Given) -> list[judges.Target]:
  """`target` of each."""
  return [target(**one) for one in given]


def phrases(task: str, name: str) -> dict[str, list[str]]:
  """All that calls a class: `explicit`, `synonyms`, `paraphrases`."""
  return captions.phrases(task, name)


# --- To erase ---


def erased_concepts(
  task: str, names: Sequence[str], method: str = ""
) -> tuple[dict[str, Any], ...]:
  """The phrases that erase classes together, as fields of `Concept`.

  Args:
    task: of all of them.
    names: the classes.
    method: who erases: MACE has phrases of its own.

  Raises:
    ValueError: a task or a class that there is not.
  """
  for name in names:
    prompts.Target(task, name)
  return tuple(recipes.concepts(method, task, tuple(names)))


def task_of(name: str) -> str:
  """The task of a class, which is the only one of its name.

  Raises:
    ValueError: no such class, with the nearest.
  """
  found = {one: task for task, all_ in concepts().items() for one in all_}
  check_choice("concept", name, found)
  return found[name]


def concept(name: str, method: str = "") -> tuple[Concept, ...]:
  """What erases a class: a phrase each, with anchor and preserved phrases.

  Args:
    name: the class, several joined by "+".
    method: as in `erased_concepts`.

  Raises:
    ValueError: a class that there is not; several of different tasks.
  """
  names = name.split("+")
  task = task_of(names[0])
  return tuple(Concept(**c) for c in erased_concepts(task, names, method))


# --- To draw ---


def prompt_rows(
  given: Given, rows_per_group: int, other_rows: int, seed: int
) -> list[dict[str, Any]]:
  """Prompts that ask for targets, and some that do not; see `prompts`."""
  made = [prompts.Target(**one) for one in given]
  return prompts.prompt_rows(made, rows_per_group, other_rows, seed)


def protocols() -> tuple[dict[str, Any], ...]:
  """Fields of `Protocol`, for each class that can be erased: `shapes-star`."""
  return tuple(
    {
      "name": f"{NAME}-{name.lower().replace(' ', '-')}",
      "model": NAME,
      "judge": NAME,
      "targets": ({"task": task, "name": name},),
      "rows_per_group": 50,
      "other_rows": 200,
      "sampling": SAMPLING,
    }
    for task, all_ in concepts().items()
    for name in all_
  )


# --- To tune on ---


def tuning_set(
  sd: StableDiffusion, params: Params, given: Given, kind: str, neighbors: int
) -> TuningSet:
  """Which classes to tune on after targets were erased; see `tuning_sets`."""
  made = [prompts.Target(**one) for one in given]
  return tuning_sets.tuning_set(sd, params, made, kind, neighbors)


def examples(
  count: int, seed: int, only: str = "", without: str = ""
) -> list[Example]:
  """Captioned renders to tune on.

  Args:
    count: how many.
    seed: draws them.
    only: classes that they must show, as `object/circle+square,style/plain`.
    without: classes that they must not show.

  Raises:
    ValueError: a class that there is not; too few renders are so.
  """
  wanted = vocabulary.parse_classes(only, "data.only")
  barred = vocabulary.parse_classes(without, "data.without")
  found = []
  for index in range(200 * count):
    drawn = dataset.example(index, seed, "train")
    shown = vocabulary.labels(drawn.scene)
    inside = all(shown[head] in values for head, values in wanted.items())
    if inside and not any(shown[h] in v for h, v in barred.items()):
      found.append(Example(drawn.image, drawn.caption))
    if len(found) == count:
      return found
  raise ValueError(
    f"data: only {len(found)} of {count} images are {wanted} without {barred}"
  )
