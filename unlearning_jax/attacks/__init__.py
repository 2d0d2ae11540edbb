"""Attacks on unlearned models: one paper, one module, chosen by its name.

Every module has `Hparams`, a frozen dataclass, and three pure functions

  init(problem, key, h) -> state
  step(problem, state, h) -> (state, info)
  prompt(batch, state, h) -> what FINDS says

FINDS is `prompt` (token ids), `words` (embeddings of words that no text stands
for), `latents` (text states) or `images` (denoised latents). The last are
probes: they ask what a network draws and search for no text. So a row goes on
even where its own prompt shows the concept, and a probe needs controls of its
own: networks that cannot know the concept.

Every leaf of the state is led by the lanes, a lane's randomness is
fold_in(key, its row's number), and no lane reads another. So a row's result
does not depend on the rows beside it. To add a method, add a module.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Shaped

from unlearning_jax import extensions, settings
from unlearning_jax.attacks.engine.victim import Batch, Problem, Victim
from unlearning_jax.concepts import check_choice


@dataclasses.dataclass(frozen=True)
class Attack:
  """A method with its hyperparameters; hashable, a static argument of jit.

  Attributes:
    method: its module's name.
    h: the module's `Hparams`.
  """

  method: str
  h: Any

  def unet_calls(self, victim: Victim) -> int:
    """UNet rows of one iteration, without those of a backward pass."""
    if self.is_probe:
      return _module(self.method).UNET_CALLS
    if not self._calls_unet:
      return 0
    guide = victim.guide
    rows = 1 if guide is None else guide.rows
    rows *= getattr(self.h, "recursion", 0) or 1
    if getattr(self.h, "loss", "denoise") == "match":
      rows += 1 if guide is None else 2
    prompts = 1 + getattr(self.h, "candidates", 0)
    return rows * getattr(self.h, "draws", 1) * prompts

  @property
  def backward_calls(self) -> int:
    """UNet rows of one iteration's backward pass."""
    passes = getattr(self.h, "recursion", 0) or 1
    return passes * getattr(self.h, "draws", 1) if self._calls_unet else 0

  @property
  def _calls_unet(self) -> bool:
    loss = getattr(self.h, "loss", "denoise")
    module = _module(self.method)
    text = loss in getattr(module, "TEXT_LOSSES", ())
    return bool(module.UNET_CALLS) and not text

  @property
  def finds(self) -> str:
    """What `prompt` returns: `prompt`, `words`, `latents` or `images`."""
    return _module(self.method).FINDS

  @property
  def first_calls(self) -> int:
    """UNet rows before the first iteration."""
    return getattr(self.h, "first_calls", 0)

  @property
  def is_probe(self) -> bool:
    """Whether it draws images itself and searches for no text."""
    return self.finds == "images"

  @property
  def reseed(self) -> bool:
    """Whether every image gets a new seed."""
    return getattr(self.h, "reseed", False)

  def init(self, problem: Problem, key: Array) -> Any:
    """The state of all lanes before their first iteration."""
    return _module(self.method).init(problem, key, self.h)

  def step(self, problem: Problem, state: Any) -> tuple[Any, dict[str, Array]]:
    """One iteration of every lane; also returns what can be logged."""
    return _module(self.method).step(problem, state, self.h)

  def prompt(self, batch: Batch, state: Any) -> Shaped[Array, "b k ..."]:
    """The adversarial tokens, embeddings, text states or images so far."""
    return _module(self.method).prompt(batch, state, self.h)


def methods() -> tuple[str, ...]:
  """The names of the attacks."""
  return tuple(n for n in extensions.modules(__name__) if n != "engine")


def listing() -> list[str]:
  """A line for each attack: its name, and what it is."""
  return extensions.listing(__name__, methods())


def bind(method: str, hparams: Mapping[str, Any]) -> Attack:
  """The method with its hyperparameters, checked before any work.

  Args:
    method: a name from `methods()`, or `package.module` of your own.
    hparams: fields of that module's `Hparams`.

  Raises:
    ValueError: an unknown method or hyperparameter (the message names the
      nearest), or an unusable value.
  """
  return Attack(
    method, settings.build(_module(method).Hparams, hparams, "hparams")
  )


def _module(method: str) -> Any:
  if method == "engine":
    # A package of helpers, not an attack.
    check_choice("method", method, methods())
  return extensions.module("method", method, __name__)
