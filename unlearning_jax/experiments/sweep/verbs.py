"""The verbs that a sweep can run, each as its launch script does."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from unlearning_jax import attacks, erasures, extensions, settings
from unlearning_jax.concepts import check_choice
from unlearning_jax.experiments import (
  attack,
  audit,
  common,
  drawing,
  erase,
  erase_together,
  evaluate,
  finetune,
)
from unlearning_jax.experiments.attack import victims
from unlearning_jax.model import Model
from unlearning_jax.record import Recorder

Opener = Callable[[], Recorder]
# What is left of a cell's run; None where it failed.
Rest = Callable[[], object] | None


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
    pack: begins several runs at once; None for a verb that cannot.
  """

  settings: type
  run: Callable[[Any, Opener, str], object]
  takes_edit: bool = True
  read: Callable[..., common.Made] = common.read_made
  check: Callable[[Any], object] = lambda given: None
  pack: "Pack | None" = None


class Packed(NamedTuple):
  """A cell among several that run at once.

  Attributes:
    given: its settings.
    opened: opens its record.
    failing: a context that records an error of the cell's own.
  """

  given: Any
  opened: Opener
  failing: Callable[[], contextlib.AbstractContextManager[Any]]


@dataclasses.dataclass(frozen=True)
class Pack:
  """What a verb's cells can do at once.

  Attributes:
    kind: equal for settings whose runs share a program.
    begin: does the shared part; returns for each cell a function that does the
      rest, None for one that failed.
  """

  kind: Callable[[Any], Hashable]
  begin: Callable[[Sequence[Packed]], Sequence[Rest]]


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


def _kind(given: erase.Settings) -> Hashable:
  """Erasures of one base that differ in phrases and seed alone."""
  how = given.model, given.dtype, given.attention, given.kernels
  return how, given.method, repr(given.hparams), len(given.phrases)


def _erase_together(some: Sequence[Packed]) -> list[Rest]:
  rest: list[Rest] = [None] * len(some)
  wanted = []
  for i, one in enumerate(some):
    with one.failing():
      record, model = erase.begin(one.given, one.opened)
      wanted.append(
        erase_together.Wanted(one.given, record, model, one.failing)
      )
      rest[i] = functools.partial(_finish, one.given, record, model)
  erase_together.make(wanted)
  return rest


def _finish(given: erase.Settings, record: Recorder, model: Model):
  # Its edit is there, unless it failed.
  found = erase.read(record.path / common.EDIT)
  if found is not None:
    erase.finish(given, record, model, found)


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
  "erase": Verb(
    erase.Settings,
    _erase,
    takes_edit=False,
    pack=Pack(_kind, _erase_together),
  ),
  "attack": Verb(attack.Settings, _attack, check=victims.bind),
  "finetune": Verb(finetune.Settings, _finetune, read=common.read_edit),
  "evaluate": Verb(evaluate.Settings, _evaluate),
  "audit": Verb(audit.Settings, _audit, check=_check_audit),
}
