"""The verbs that a sweep can run, each as its launch script does."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from unlearning_jax import attacks, erasures, extensions, settings
from unlearning_jax.concepts import check_choice
from unlearning_jax.experiments import (
  attack,
  audit,
  common,
  drawing,
  erase,
  evaluate,
  finetune,
)
from unlearning_jax.experiments.attack import victims
from unlearning_jax.record import Recorder

Opener = Callable[[], Recorder]


@dataclasses.dataclass(frozen=True)
class Verb:
  """A verb.

  Attributes:
    settings: the class of its settings.
    run: runs it with settings, a function that opens the record, and the path
      of an edit, "" for none.
    takes_edit: whether it starts from an edit.
    read: reads the edit at a path, or the guidance where the verb takes that.
    check: refuses settings that `run` would refuse.
  """

  settings: type
  run: Callable[[Any, Opener, str], object]
  takes_edit: bool = True
  read: Callable[..., common.Made] = common.read_made
  check: Callable[[Any], object] = lambda given: None


def find(name: str) -> Verb:
  """A verb by its name.

  Raises:
    ValueError: a sweep cannot run it.
  """
  check_choice("--verb", name, VERBS)
  return VERBS[name]


def hparams(given: Any) -> type | None:
  """The class of a method's hyperparameters; None for other settings."""
  home = _METHODS.get(type(given))
  if home is None:
    return None
  return extensions.module("method", given.method, home).Hparams


def of_config(values: Mapping[str, Any]) -> str:
  """The verb whose settings a config holds.

  Raises:
    ValueError: no verb that a sweep can run has such settings.
  """
  found = [
    name for name, one in VERBS.items() if settings.fits(one.settings, values)
  ]
  if not found:
    raise ValueError(
      f"--config: holds the settings of no verb of a sweep; it runs "
      f"{', '.join(VERBS)}"
    )
  return found[0]


def _erase(given: erase.Settings, opened: Opener, edit: str):
  erase.run(given, opened, common.load_model(given))


def _attack(given: attack.Settings, opened: Opener, edit: str):
  attack.run(given, opened, edit=edit)


def _finetune(given: finetune.Settings, opened: Opener, edit: str):
  model = common.load_model(given)
  if edit:
    model = model.with_edit(common.read_edit(edit, "edit"))
  finetune.run(given, opened, model)


def _evaluate(given: drawing.Settings, opened: Opener, edit: str):
  models = evaluate.read_models(given, [edit] if edit else [])
  evaluate.run(given, opened, models)


def _audit(given: audit.Settings, opened: Opener, edit: str):
  models = evaluate.read_models(given.evaluate, [edit] if edit else [])
  audit.run(given, opened, models)


def _check_audit(given: audit.Settings):
  for one in given.attacks.values():
    victims.bind(one)


_METHODS = {
  erase.Settings: erasures.__name__, attack.Settings: attacks.__name__,
}  # fmt: skip
VERBS = {
  "erase": Verb(erase.Settings, _erase, takes_edit=False),
  "attack": Verb(attack.Settings, _attack, check=victims.bind),
  "finetune": Verb(finetune.Settings, _finetune, read=common.read_edit),
  "evaluate": Verb(evaluate.Settings, _evaluate),
  "audit": Verb(audit.Settings, _audit, check=_check_audit),
}
