"""The programs of a run that a check looks at, by the run's settings."""

from collections.abc import Iterator
from typing import NamedTuple

import jax

from unlearning_jax.experiments import (
  attack,
  common,
  diagnose,
  erase,
  matrix,
  resurgence,
)
from unlearning_jax.experiments import finetune as tuning
from unlearning_jax.experiments.matrix.settings import BASE
from unlearning_jax.experiments.programs import build


class Need(NamedTuple):
  """A program that a run compiles.

  Attributes:
    program: a name of `build.BUILD`, or `tune`.
    rows: of one call, over the devices that share it.
    dtype: that networks compute in.
    how: see the builders of `build`.
    fsdp: devices that one copy of the model is split over.
    unknown: why it is neither recorded nor can be compiled; "" where it can.
  """

  program: str
  rows: int
  dtype: str
  how: build.How = None
  fsdp: int = 1
  unknown: str = ""


def needs(given: object) -> list[Need]:
  """The programs of a run that are looked at, by its settings.

  Args:
    given: settings, or the settings of several stages.
  """
  if isinstance(given, tuple):
    return [*dict.fromkeys(need for one in given for need in needs(one))]
  if isinstance(given, matrix.Settings):
    # A cell has one process, whatever their number.
    cells = (cell for cell in given.cells() if cell.victim == BASE)
    found = (need for one in cells for need in _drawn(given.attack(one), 1))
    return [*dict.fromkeys(found)]
  if isinstance(given, tuning.Settings):
    rows = given.batch_size // given.accumulate
    name = given.train if given.train in ("full", "lora") else "tune"
    kind, why = given.defense.kind, ""
    if kind in ("project", "anchor"):
      why = f"defense.kind={kind!r} has a step of its own"
    return [Need(name, rows, given.dtype, given, given.mesh.fsdp, why)]
  if isinstance(given, common.Drawn) and not isinstance(
    given, diagnose.Settings
  ):
    return _drawn(given, jax.process_count())
  return []


def _drawn(given: common.Drawn, processes: int) -> list[Need]:
  """The block of an attack, and the sampler."""
  found = []
  if isinstance(given, attack.Settings):
    bound = attack.victims.bind(given)
    # As `attack.run` has them.
    share = -(-len(attack.rows.listed(given)) // processes)
    lanes = max(1, min(given.lanes, share, given.sharing.wave or share))
    why = ""
    if given.guidance.in_loss:
      why = "guidance.in_loss has a loss of its own"
    elif bound.is_probe:
      why = "a probe has programs of its own"
    if getattr(bound.h, "blocks", 1):
      found.append(Need("attack", lanes, given.dtype, bound, unknown=why))
  if not isinstance(given, erase.Settings) or given.draws:
    found.append(Need("sample", given.batch_size, given.dtype, given.sampling))
  return found


def notes(given: object) -> Iterator[str]:
  """What of a run is not looked at though it may be large."""
  for one in given if isinstance(given, tuple) else (given,):
    if isinstance(one, erase.Settings):
      yield "the erasure itself is neither recorded nor compiled"
    if isinstance(one, resurgence.Settings):
      yield "erasures and tunings are neither recorded nor compiled"
    if isinstance(one, matrix.Settings) and one.erasures:
      yield "the erasures are neither recorded nor compiled"
