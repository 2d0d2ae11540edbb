"""Attacks an unlearned model, many prompts at a time.

  run(settings, open_record) -> the content of summary.json

Each row is recorded when it ends. A run that was killed goes on with the rest.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from unlearning_jax import checking, processes
from unlearning_jax.attacks.engine import lanes as driver
from unlearning_jax.attacks.engine import rows as engine_rows
from unlearning_jax.attacks.engine.victim import Pool
from unlearning_jax.experiments import common
from unlearning_jax.experiments.attack import (
  check,
  control,
  networks,
  pool,
  rows,
  sharing,
  summary,
  victims,
)
from unlearning_jax.experiments.attack.control import Control
from unlearning_jax.experiments.attack.settings import Settings as Settings
from unlearning_jax.experiments.attack.summary import printed as printed
from unlearning_jax.experiments.attack.victims import Setup
from unlearning_jax.model import Model
from unlearning_jax.record import Recorder


def run(
  given: Settings,
  open_record: Callable[[], Recorder],
  *,
  edit: str = "",
  victim: Model | None = None,
  beside: str | Control = "",
  known: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
  """Checks, attacks, summarizes.

  Args:
    given: the settings.
    open_record: opens the record once everything has been checked: a folder
      that a refused run opened would be bound to its config.
    edit: an edit file or the folder of an erasure; "" for none.
    victim: the victim itself; None takes what settings and `edit` name.
    beside: a control that ran on the same rows, or its folder; "" for none.
    known: rows of attacks on the same victim, drawn and judged alike, whose
      images of the prompts as given are in the record.

  Returns:
    The content of `summary.json`; empty where another process writes it.

  Raises:
    ValueError: something cannot be done; nothing has been written.
  """
  attack = victims.bind(given)
  listed = rows.listed(given)
  victims.check_guidance(given, listed)
  if isinstance(beside, str):
    beside = control.finished(beside)
  tokens = attack.finds == "prompt"
  control.check_control(beside, given, listed, vocabulary=tokens)
  setup = victims.setup(given, attack, victim, edit)
  control.check_same_victim(beside, setup.name)
  steps = given.sampling.num_inference_steps
  control.check_budget(beside, attack, setup.victim, steps)
  check.fits(setup, listed)
  others = networks.of(setup)
  checking.about(**networks.beside(setup, others))
  inputs = {"victim": setup.name, **victims.words_hash(attack)}
  prints = {n: victims.fingerprint(one, {}) for n, one in others.items()}
  inputs |= prints | rows.hashes(given, listed)
  notes = rows.notes(given, setup.sd)
  record = open_record()
  common.say(notes)
  common.begin(record, given, setup.base.params, setup.edits, inputs)
  host, setup = setup.base.params, victims.placed(setup)
  done = record.done_ids()
  # All processes share one list: none records a row before all have read it.
  processes.wait_for_all("rows listed")
  marks = ["", *(f"{name}/" for name in others)]
  left = [row for row in listed if not {m + row["id"] for m in marks} <= done]
  mine = left[jax.process_index() :: jax.process_count()]
  targets = record.path / "images" / "targets"
  table = rows.targeted(setup.base, mine, given, setup.mesh, targets)
  share = -(-len(listed) // jax.process_count())
  learnt = pool.pool_of(setup, bool(mine))
  ended = len({m + row["id"] for m in marks for row in listed} & done)
  with record.progress("attack", len(marks) * len(listed), done=ended) as bar:
    for name, one in {"": None, **others}.items():
      mark = f"{name}/" if name else ""
      # All processes read the same rows, so all leave a network out or none.
      if {mark + row["id"] for row in listed} <= done:
        continue
      now = setup
      if one is not None:
        now = networks.swapped(setup, name, one, host, prints[name])
      for row in attacked(
        record, now, [row for row in table if mark + row.id not in done],
        check.checker(record, now, listed, known),
        lanes=min(given.lanes, share), learnt=learnt,
        meet=processes.wait_for_all,
      ):  # fmt: skip
        bar.update(note=row["status"])
  processes.wait_for_all("rows attacked")
  document = summary.conclude(record, setup, beside, targets, notes)
  record.mark_done()
  return document


def attacked(
  record: Recorder,
  setup: Setup,
  table: Sequence[engine_rows.Row],
  judged: engine_rows.Check,
  *,
  lanes: int,
  learnt: Pool | None = None,
  meet: Callable[[str], object] = lambda name: None,
) -> Iterator[dict[str, Any]]:
  """Attacks rows; records and yields each row when it ends.

  Args:
    record: gets the rows.
    setup: the attack, on the devices.
    table: this process's rows that are not recorded yet.
    judged: draws and judges images, from `check.checker`.
    lanes: rows that are attacked at once, the same before and after a kill.
    learnt: images that all rows learn from; None for attacks without a pool.
    meet: waits for the run's other processes before rows share words; without
      it there are none.
  """
  given = setup.given
  how = driver.Options(
    # One program for all waves, the first and smallest too.
    lanes=min(lanes, given.sharing.wave or lanes),
    mesh=setup.mesh, mode=given.vocabulary, pool=learnt,
    proxy=setup.diffusion_classifier,
    threshold=given.diffusion_classifier.threshold,
    long_prompts=given.long_prompts,
  )  # fmt: skip
  for wave, own in sharing.waves(how, setup, record, table, meet):
    found = driver.attack_rows(
      setup.sd, setup.victim, setup.original, setup.attack, wave, judged,
      jax.random.key(given.seed), own,
    ) if wave else ()  # fmt: skip
    for row in found:
      row["unet_calls"] = _unet_calls(setup, row)
      row["victim"] = setup.name[:12]
      if setup.network:
        row["id"] = f"{setup.network}/{row['id']}"
        row["network"] = setup.network
      record.append_row(row)
      yield row


def _unet_calls(setup: Setup, row: dict[str, Any]) -> int:
  """The UNet rows that a row has cost, without those of backward passes."""
  guided = row["guidance"] is None or row["guidance"] > 1
  image = setup.given.sampling.num_inference_steps
  image *= setup.victim.image_rows if guided else 1
  spent = row["iterations"] * setup.attack.unet_calls(setup.victim)
  spent += setup.attack.first_calls * bool(row["iterations"])
  # A probe has drawn all but the first image itself.
  spent += image * (1 if setup.attack.is_probe else row["images"])
  return spent + row.get("diffusion_classifier_calls", 0)
