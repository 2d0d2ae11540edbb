"""Concept erasure: one paper, one module, chosen by the module's name.

Every module has

  Hparams     a frozen dataclass with defaults, which checks itself
  CHANGES     patterns of the leaves that may differ, as "unet/*/attn2/*"
  NEEDS       what it learns from besides phrases: prompts, images or nothing
  erase(sd, params, concepts, key, h, hooks) -> Edit | Guidance

To add a method, add a module. A module of one's own is named by its dotted
path, or by `package.module:name` of an object that has these four.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import PRNGKeyArray

from unlearning_jax import extensions, finetune, settings
from unlearning_jax.concepts import Concept
from unlearning_jax.edits import Edit
from unlearning_jax.guidance import Guidance
from unlearning_jax.stable_diffusion import Params, StableDiffusion

NEEDS = ("prompts", "images", "nothing")


class Saved(Protocol):
  """Statistics that a re-solve starts from."""

  def save(self, path: pathlib.Path) -> None:
    """Writes them."""


def in_turn(
  name: str, count: int, make: Callable[[int], np.ndarray]
) -> list[np.ndarray]:
  """`make` of 0 to `count` - 1; others may keep them, under `name`."""
  del name
  return [make(i) for i in range(count)]


def _drop(statistics: Saved):
  del statistics


@dataclasses.dataclass(frozen=True)
class Hooks:
  """What a caller may do about the parts of an erasure that take long.

  Attributes:
    keep: is given the statistics for a re-solve, where the method has them.
    collect: called as `in_turn`, to keep images that are made once.
    trainer: called as `finetune.train_erasure`, to record and to resume.
  """

  keep: Callable[[Saved], None] = _drop
  collect: Callable[..., list[np.ndarray]] = in_turn
  trainer: Callable[..., Params] = finetune.train_erasure


NO_HOOKS = Hooks()


@dataclasses.dataclass(frozen=True)
class Erasure:
  """A method with its hyperparameters.

  Attributes:
    method: its module's name.
    h: the module's `Hparams`.
  """

  method: str
  h: Any

  def __call__(
    self,
    sd: StableDiffusion,
    params: Params,
    concepts: Sequence[Concept],
    key: PRNGKeyArray,
    hooks: Hooks = NO_HOOKS,
  ) -> Edit | Guidance:
    """Erases `concepts`; see the module's `erase`."""
    erase = module(self.method).erase
    return erase(sd, params, concepts, key, self.h, hooks)


def methods() -> tuple[str, ...]:
  """The names of the erasure methods."""
  return extensions.modules(__name__)


def listing() -> list[str]:
  """A line for each method: its name, and what it is."""
  return extensions.listing(__name__, methods())


def module(method: str) -> Any:
  """What erases: one of our modules, or a user's own.

  Raises:
    ValueError: unknown method, names the nearest; a module that cannot be
      imported.
  """
  return extensions.module("method", method, __name__)


def bind(method: str, hparams: Mapping[str, Any]) -> Erasure:
  """The method with its hyperparameters, checked before any work.

  Args:
    method: a name from `methods()`, or a module of one's own.
    hparams: fields of that module's `Hparams`.

  Raises:
    ValueError: unknown method or hyperparameter, names the nearest; or an
      unusable value.
  """
  made = settings.build(module(method).Hparams, hparams, "hparams")
  return Erasure(method, made)


def check_predicts_noise(sd: StableDiffusion, method: str):
  """Refuses a model whose network predicts anything else.

  Raises:
    ValueError: naming the method.
  """
  found = sd.schedule.prediction_type
  if found != "epsilon":
    raise ValueError(
      f"{method}: the model's prediction_type is {found!r}; allowed: 'epsilon'"
    )
