"""Erase, attack, fine-tune, evaluate: concept unlearning in diffusion models.

  import unlearning_jax as ul

  model = ul.load("shapes")
  star = ul.concept(model, "star")
  erased = ul.erase(model, star, method="rece")
  ul.grid([model, erased], ["a red star", "a blue moon"], seeds=[0, 1])

`dir(ul)` lists every name; a name is imported when it is first used. Some
packages can be called: `ul.attacks()` lists the attacks, and `ul.attacks.bind`
is a function of the package `attacks`.
"""

import importlib
import os
import sys
import types
from typing import TYPE_CHECKING, Any

# Without torch, transformers warns that its models are missing. Only its
# tokenizers are used here.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

__version__ = "0.2.0"
_NAMES = (
  "Concept", "ErasureWarning", "Model", "attack", "audit", "concept", "erase",
  "evaluate", "grid", "inspect", "judge", "leaderboard", "load", "measure",
  "methods", "metric", "open", "protocol", "published", "resurgence",
  "sweep",
)  # fmt: skip
# Packages that can also be called, as the functions of the same names in `api`.
_CALLED = ("attacks", "concepts", "finetune", "protocols")

if TYPE_CHECKING:
  from unlearning_jax.api import (  # noqa: F401
    Concept,
    ErasureWarning,
    Model,
    attack,
    audit,
    concept,
    erase,
    evaluate,
    grid,
    inspect,
    judge,
    leaderboard,
    load,
    measure,
    methods,
    metric,
    open,
    protocol,
    published,
    resurgence,
    sweep,
  )


class _Called(types.ModuleType):
  """A package that can be called; see `_CALLED`."""

  def __call__(self, *args: Any, **options: Any) -> Any:
    name = self.__name__.rpartition(".")[2]
    api = importlib.import_module(f"{__name__}.api")
    return getattr(api, name)(*args, **options)


class _Lazy(types.ModuleType):
  """This package, which imports a name when it is first used."""

  def __getattr__(self, name: str) -> Any:
    if name in _NAMES:
      return getattr(importlib.import_module(f"{__name__}.api"), name)
    if name in _CALLED:
      return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

  def __setattr__(self, name: str, value: Any):
    # Python sets every imported submodule as an attribute.
    if name in _CALLED and isinstance(value, types.ModuleType):
      value.__class__ = _Called
    super().__setattr__(name, value)

  def __dir__(self) -> list[str]:
    return sorted((*_NAMES, *_CALLED, "__version__"))


sys.modules[__name__].__class__ = _Lazy
