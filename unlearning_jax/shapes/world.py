"""The Shapes world by name: its model, its judge, what it knows of itself.

`extensions.world("shapes")` is this module; nothing outside `shapes` imports it
otherwise.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from unlearning_jax import judges, shapes
from unlearning_jax.shapes import judge as judge_
from unlearning_jax.shapes import prompts

NAME = "shapes"
model_folder = shapes.model_folder


def judge() -> judges.Judge:
  """The classifier that judges the world's images; see `shapes.judge`."""
  net = judge_.load(shapes.judge_folder())
  return judges.Judge(
    name=net.name,
    score=net,
    labels=net.heads,
    weights_hash=net.weights_hash,
    image_size=(32, 32),
    cannot_see="anything outside the Shapes world",
  )


def target(task: str, name: str) -> judges.Target:
  """How the judge calls a class.

  Raises:
    ValueError: a task or a class that there is not.
  """
  found = prompts.Target(task, name)
  return judges.Target(found.head, found.name)


def targets(given: Sequence[Mapping[str, str]]) -> list[judges.Target]:
  """`target` of each."""
  return [target(**one) for one in given]


def prompt_rows(
  given: Sequence[Mapping[str, str]], per_group: int, others: int, seed: int
) -> list[dict[str, Any]]:
  """Prompts that ask for targets, and some that do not; see `prompts`."""
  made = [prompts.Target(**one) for one in given]
  return prompts.prompt_rows(made, per_group, others, seed)
