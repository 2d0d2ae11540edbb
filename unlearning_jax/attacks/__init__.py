"""Attacks on unlearned models: one paper, one module, chosen by its name.

Every module has `Hparams`, a frozen dataclass, and three pure functions

  init(problem, key, h) -> state
  step(problem, state, h) -> (state, info)
  prompt(batch, state, h) -> what FINDS says

which is token ids (`prompt`), embeddings of words that no text stands for
(`words`), or text states (`latents`).

Every leaf of the state is led by the lanes, a lane's randomness is
fold_in(key, its row's number), and lanes do not touch: a row's result does not
depend on what is attacked beside it. To add a method, add a module.
"""

import dataclasses
import difflib
import importlib
from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Shaped

from unlearning_jax import extensions
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

  @property
  def _module(self) -> Any:
    return importlib.import_module(f"{__name__}.{self.method}")

  def unet_calls(self, victim: Victim) -> int:
    """UNet rows of one iteration; a backward pass is not counted."""
    loss = getattr(self.h, "loss", "denoise")
    if not self._module.UNET_CALLS:
      return 0
    if loss in getattr(self._module, "TEXT_LOSSES", ()):
      return 0
    guide = victim.guide
    rows = 1 if guide is None else guide.rows
    rows *= getattr(self.h, "recursion", 0) or 1
    if loss == "match":
      rows += 1 if guide is None else 2
    prompts = 1 + getattr(self.h, "candidates", 0)
    return rows * getattr(self.h, "draws", 1) * prompts

  @property
  def finds(self) -> str:
    """What it finds: `prompt`, `words` or `latents`."""
    return self._module.FINDS

  @property
  def about(self) -> str:
    """What it is, in a line."""
    return (self._module.__doc__ or "").partition("\n")[0]

  @property
  def reseed(self) -> bool:
    """Whether every image gets a new seed."""
    return getattr(self.h, "reseed", False)

  def init(self, problem: Problem, key: Array) -> Any:
    """The lanes before their first iteration."""
    return self._module.init(problem, key, self.h)

  def step(self, problem: Problem, state: Any) -> tuple[Any, dict[str, Array]]:
    """One iteration of every lane, with what can be logged of it."""
    return self._module.step(problem, state, self.h)

  def prompt(self, batch: Batch, state: Any) -> Shaped[Array, "b k ..."]:
    """The adversarial tokens, or embeddings, as they stand."""
    return self._module.prompt(batch, state, self.h)


def methods() -> tuple[str, ...]:
  """The names of the attacks."""
  return tuple(n for n in extensions.modules(__name__) if n != "engine")


def listing() -> list[str]:
  """Every attack with what it is, a line each."""
  width = max(map(len, methods()))
  return [f"{name:{width}}  {bind(name, {}).about}" for name in methods()]


def bind(method: str, hparams: Mapping[str, Any]) -> Attack:
  """The method with its hyperparameters, checked before any work.

  Args:
    method: a name from `methods()`.
    hparams: fields of that module's `Hparams`.

  Raises:
    ValueError: unknown method, names the nearest; or an unusable value.
    TypeError: unknown hyperparameter; names the accepted ones.
  """
  check_choice("method", method, methods())
  module = importlib.import_module(f"{__name__}.{method}")
  accepted = [field.name for field in dataclasses.fields(module.Hparams)]
  for name in hparams:
    if name not in accepted:
      near = difflib.get_close_matches(name, accepted, n=1, cutoff=0.4)
      hint = f"; did you mean {near[0]}?" if near else ""
      raise TypeError(
        f"{method} has no hyperparameter {name!r}; accepted: "
        f"{', '.join(accepted)}{hint}"
      )
  return Attack(method, module.Hparams(**hparams))
