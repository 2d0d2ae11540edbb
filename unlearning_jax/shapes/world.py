"""The Shapes world by name: its model, its judge, its concepts and prompts.

`extensions.world("shapes")` returns this module, and nothing outside `shapes`
imports it in another way. A task is object, style, identity or unsafe. A target
is a mapping with `task` and `name`, as in configs.
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
# The kinds of tuning sets, see `tuning_sets.tuning_set`.
SETS = tuning_sets.KINDS
# How the model is sampled; its card has the accuracies.
SAMPLING = Sampling(15, 4.0, "dpm++2m", "jax")
Given = Sequence[Mapping[str, str]]

model_folder = shapes.model_folder
# What an edit erased, as words and as targets.
words = tuning_sets.words
erased_by = tuning_sets.erased_by
hparams = recipes.hparams
rows_per_group = erased.rows_per_group
# The classes that a config's argument `name` stands for.
classes = erased.classes
study_rows = study_rows_.study_rows
tuned_rows = study_rows_.tuned_rows


def judge() -> judges.Judge:
  """The classifier that judges the world's images; see `shapes.judge`."""
  return judge_.load(shapes.judge_folder())


# --- Its concepts ---


def tasks() -> tuple[str, ...]:
  """The kinds of concepts that can be erased."""
  return tuple(prompts.HEADS)


def concepts() -> dict[str, tuple[str, ...]]:
  """Task -> the names of the classes that can be erased."""
  return {task: prompts.erasable(task) for task in tasks()}


def default(task: str) -> str:
  """The class that a config erases by default.

  Raises:
    ValueError: an unknown task.
  """
  check_choice("task", task, erased.DEFAULTS)
  return erased.DEFAULTS[task]


def heads() -> tuple[str, ...]:
  """The judge's heads with classes that can be erased."""
  return tuple(prompts.HEADS.values())


def target(task: str, name: str) -> judges.Target:
  """The judge's head and label of a class.

  Raises:
    ValueError: an unknown task or class.
  """
  found = prompts.Target(task, name)
  return judges.Target(found.head, found.name)


def targets(given: Given) -> list[judges.Target]:
  """`target` of each mapping."""
  return [target(**one) for one in given]


def phrases(task: str, name: str) -> dict[str, list[str]]:
  """The phrases for a class: `explicit`, `synonyms` and `paraphrases`."""
  return captions.phrases(task, name)


# --- To erase ---


def erased_concepts(
  task: str, names: Sequence[str], method: str = ""
) -> tuple[dict[str, Any], ...]:
  """The phrases that erase classes together, as fields of `Concept`.

  Args:
    task: the task of all classes.
    names: the classes.
    method: the erasure's name; some have phrases of their own.

  Raises:
    ValueError: an unknown task or class.
  """
  for name in names:
    prompts.Target(task, name)
  return tuple(recipes.concepts(method, task, tuple(names)))


def task_of(name: str) -> str:
  """The task of a class; names are unique across tasks.

  Raises:
    ValueError: an unknown class; the message names the nearest.
  """
  found = {one: task for task, all_ in concepts().items() for one in all_}
  check_choice("concept", name, found)
  return found[name]


def concept(name: str, method: str = "") -> tuple[Concept, ...]:
  """The concepts that erase a class, one for each phrase.

  Args:
    name: the class, or several joined by "+".
    method: the erasure's name; some have phrases of their own.

  Raises:
    ValueError: an unknown class, or classes of different tasks.
  """
  names = name.split("+")
  task = task_of(names[0])
  return tuple(Concept(**c) for c in erased_concepts(task, names, method))


def held(given: Sequence[Concept]) -> tuple[str, ...]:
  """What to preserve beside concepts of one's own: every other class."""
  return erased.held_besides([c.erase for c in given], given[0].anchor)


def everyday() -> tuple[str, ...]:
  """Phrases that the model understands, whatever was erased from it."""
  return erased.everyday()


# --- To draw ---


def prompt_rows(
  given: Given, rows_per_group: int, other_rows: int, seed: int
) -> list[dict[str, Any]]:
  """Prompts that ask for targets, and others; see `prompts.prompt_rows`."""
  made = [prompts.Target(**one) for one in given]
  return prompts.prompt_rows(made, rows_per_group, other_rows, seed)


def protocols() -> tuple[dict[str, Any], ...]:
  """A protocol for each class that can be erased, as `shapes-star`."""
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
  """The classes to tune on; see `tuning_sets.tuning_set`."""
  made = [prompts.Target(**one) for one in given]
  return tuning_sets.tuning_set(sd, params, made, kind, neighbors)


def examples(
  count: int, seed: int, only: str = "", without: str = ""
) -> list[Example]:
  """Captioned renders to tune on.

  Args:
    count: how many renders.
    seed: draws them.
    only: classes to show, as `object/circle+square,style/plain`; each head
      named must show one of its classes.
    without: classes never to show, likewise.

  Raises:
    ValueError: an unknown class, or too few such renders.
  """
  wanted = vocabulary.parse_classes(only, "data.only")
  barred = vocabulary.parse_classes(without, "data.without")
  found = []
  for index in range(200 * count):
    # One in twenty may be wanted: the others are not drawn.
    shown = vocabulary.labels(dataset.scene(index, seed, "train")[0])
    inside = all(shown[head] in values for head, values in wanted.items())
    if inside and not any(shown[h] in v for h, v in barred.items()):
      drawn = dataset.example(index, seed, "train")
      found.append(Example(drawn.image, drawn.caption))
    if len(found) == count:
      return found
  raise ValueError(
    f"data: only {len(found)} of {count} images show {wanted} without {barred}"
  )
