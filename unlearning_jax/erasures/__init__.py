"""Concept erasure: one paper, one module, chosen by the module's name.

Every module has

  Hparams     a frozen dataclass with defaults, which checks itself
  CHANGES     patterns of the leaves that may differ, as "unet/*/attn2/*"
  NEEDS       what the method learns from: "prompts", "images" or "nothing"
  erase(sd, params, concepts, key, h, hooks) -> Edit | Guidance

`Erasure` describes the arguments of `erase`. To add a method, add a module.
Name your own by its dotted path, or as `package.module:name` an object that has
these four.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import PRNGKeyArray

from unlearning_jax import extensions, finetune, settings
from unlearning_jax.concepts import Concept
from unlearning_jax.edits import Edit, edit_between
from unlearning_jax.guidance import Guidance
from unlearning_jax.stable_diffusion import Params, StableDiffusion

NEEDS = ("prompts", "images", "nothing")


class Saved(Protocol):
  """Statistics that a later re-solve starts from."""

  def save(self, path: pathlib.Path) -> None:
    """Writes them to a file."""


def in_turn(
  name: str, count: int, make: Callable[[int], np.ndarray]
) -> list[np.ndarray]:
  """Calls `make` with 0 to `count` - 1.

  A recorder's own version keeps the arrays under `name`, and makes none twice.
  """
  del name
  return [make(i) for i in range(count)]


def _drop(statistics: Saved):
  del statistics


@dataclasses.dataclass(frozen=True)
class Hooks:
  """Lets a caller record and resume the slow parts of an erasure.

  Attributes:
    keep: receives the statistics for a re-solve, if the method has them.
    collect: has the signature of `in_turn`; makes images.
    trainer: has the signature of `finetune.train_erasure`; trains.
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
    """Erases `concepts`, by the module's `erase`.

    Args:
      sd: networks, tokenizer and schedule, without arrays.
      params: the base, {text_encoder, unet, vae}; not changed.
      concepts: what to erase, each with its anchor and what it preserves.
      key: the source of all randomness; closed forms and guidance use none.
      hooks: record and resume the slow parts.

    Returns:
      An `Edit` of weights, or the `Guidance` of methods that change none.
    """
    erase = module(self.method).erase
    return erase(sd, params, concepts, key, self.h, hooks)


def methods() -> tuple[str, ...]:
  """The names of the erasure methods."""
  return extensions.modules(__name__)


def listing() -> list[str]:
  """A line for each method: its name, and what it is."""
  return extensions.listing(__name__, methods())


def module(method: str) -> Any:
  """The module of a method, one of ours or your own.

  Raises:
    ValueError: an unknown method (the message names the nearest), or a module
      that cannot be imported.
  """
  return extensions.module("method", method, __name__)


def bind(method: str, hparams: Mapping[str, Any]) -> Erasure:
  """The method with its hyperparameters, checked before any work.

  Args:
    method: a name from `methods()`, or `package.module` of your own.
    hparams: fields of that module's `Hparams`.

  Raises:
    ValueError: an unknown method or hyperparameter (the message names the
      nearest), or an unusable value.
  """
  made = settings.build(module(method).Hparams, hparams, "hparams")
  return Erasure(method, made)


def edit_of(
  params: Params,
  part: finetune.Partition,
  trained: Mapping[str, Any],
  method: str,
  concepts: Sequence[Concept],
) -> Edit:
  """The edit of an erasure that trained a part of the parameters.

  Args:
    params: the base's.
    part: what was trained, and what was not.
    trained: its leaves after training.
    method: the method's name.
    concepts: what was erased.

  Raises:
    ValueError: as `edits.edit_between`.
  """
  edited = {**params, **part.join(trained, part.frozen)}
  return edit_between(
    params, edited, method=method, concepts=concepts, diagnostics={}
  )


def check_batch(batch_size: int, num_images: int):
  """Checks that images fill a batch.

  Raises:
    ValueError: the batch is empty, or larger than all images.
  """
  if not 1 <= batch_size <= num_images:
    raise ValueError(f"{batch_size=}; allowed: 1 to num_images={num_images}")


def check_images(
  phrases: Sequence[Concept | str],
  num_images: int,
  typed: str = "hparams.num_images={}",
):
  """Checks that each phrase to erase can have an image.

  Args:
    typed: how the number is given, with `{}` in its place.

  Raises:
    ValueError: there are more phrases than images; says how many are needed.
  """
  if len(phrases) > num_images:
    raise ValueError(
      f"{num_images=}: {len(phrases)} phrases need an image each, or some "
      f"would not be erased; give {typed.format(len(phrases))} or more"
    )


def check_predicts_noise(sd: StableDiffusion, method: str):
  """Checks that the model's network predicts the noise.

  Raises:
    ValueError: the network predicts something else; names the method.
  """
  found = sd.schedule.prediction_type
  if found != "epsilon":
    raise ValueError(
      f"{method}: the model's prediction_type is {found!r}; allowed: 'epsilon'"
    )
