"""Runs an audit: its stages one after another, then the page."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from unlearning_jax import checking, convert, processes, sharding
from unlearning_jax.experiments import cells, common
from unlearning_jax.experiments.audit import document, files, packing, plan
from unlearning_jax.experiments.audit.findings import Findings
from unlearning_jax.experiments.audit.settings import Settings, Stage
from unlearning_jax.experiments.audit.stages import Audit
from unlearning_jax.metrics import verdicts
from unlearning_jax.model import Model
from unlearning_jax.record import Recorder, read_rows, seal


def run(
  given: Settings,
  open_record: Callable[[], Recorder],
  models: Mapping[str, Model],
) -> dict[str, Any]:
  """Checks, says what it will cost, runs the stages, writes the page.

  A stage that fails leaves its error, and the others go on. A stage that has
  ended is not run again. An error of the machine, such as a full disk, ends
  the run; the next start goes on.

  Args:
    given: the settings.
    open_record: opens the record once everything has been checked.
    models: the base as `base`, and each victim by its name.

  Returns:
    The content of `summary.json`; empty where another process writes it.

  Raises:
    ValueError: as `Audit`, or the record is of another audit.
  """
  audit = Audit(given, models)
  common.say(plan.described(audit).splitlines())
  checking.about(audit.planned(), safe=audit.draws_safely())
  record = open_record()
  audit.open(record)
  _begin(audit, record)
  store = cells.Folders[Stage](
    record.path,
    check=lambda stage: seal.check(audit.folder(stage), images=True),
  )
  wanted = [one for one in audit.stages if not audit.why_not(one)]
  if not all(map(store.ended, wanted)):
    _reopen(record)
  cells.run(
    store,
    wanted,
    lambda some: _work(audit, record, *some),
    # One process marks a stage as ended; the others must not look before.
    after=lambda: processes.wait_for_all("stage ended"),
  )
  if not record.is_writer:
    return {}
  return _conclude(audit, record, states(audit, store))


def states(
  audit: Audit, store: cells.Folders[Stage]
) -> dict[Stage, tuple[str, str]]:
  """What became of every stage, and why.

  A stage that this start was not asked for is as an earlier start left it.
  """
  found = {}
  for one in audit.given.every_stage(audit.names):
    why = store.failed.get(one) or store.why(one)
    if store.ended(one) and one not in store.failed:
      found[one] = document.DONE, ""
    elif why:
      found[one] = document.FAILED, why
    elif why := audit.why_not(one):
      found[one] = document.SKIPPED, why
    elif one not in audit.stages:
      found[one] = document.SKIPPED, "this start was not asked for it"
    else:
      found[one] = document.STOPPED, "the next start tries it again"
  return found


def _reopen(record: Recorder):
  """Takes `DONE` back: a stage is left, or has failed."""
  if record.is_writer:
    (record.path / seal.NAME).unlink(missing_ok=True)


def _begin(audit: Audit, record: Recorder):
  given = audit.given.evaluate
  inputs = {
    name: common.fingerprint(audit.victim(name), audit.base)
    for name in audit.names
    if audit.given.erase is None or name != audit.names[-1]
  }
  judge = common.load_judge(given)
  record.record_provenance(
    devices=sharding.describe_devices(),
    base_fingerprint=convert.params_fingerprint(audit.base.params),
    judge_hashes={judge.name: judge.identity} if judge else {},
    seeds={"seed": given.seed},
    inputs=inputs,
  )


def _work(audit: Audit, record: Recorder, stage: Stage):
  number = audit.stages.index(stage) + 1
  if common.is_first():
    text = f"[{number}/{len(audit.stages)}] {stage.title}"
    print(text + _left(audit, record), file=sys.stderr, flush=True)
  try:
    cost = audit.run(stage)
  except Exception as error:
    # The others may be in its training steps, and wait for this process.
    processes.say_failed(error)
    raise
  if record.is_writer:
    _add_cost(audit, record, stage, cost)


def _add_cost(
  audit: Audit, record: Recorder, stage: Stage, cost: Mapping[str, Any]
):
  if str(stage) not in record.done_ids():
    calls = _unet_calls(audit, stage)
    record.append_row({"id": str(stage), **cost, "unet_calls": calls})


def _left(audit: Audit, record: Recorder) -> str:
  """How long the rest takes on this device, by what has ended; "" at first."""
  ended = {row["id"]: row for row in record.rows()}
  timed = [row for row in ended.values() if row["seconds"] is not None]
  calls = sum(row["unet_calls"] for row in timed)
  left = sum(
    one.unet_calls for one in plan.costs(audit) if str(one.stage) not in ended
  )
  if not calls:
    return ""
  seconds = sum(row["seconds"] for row in timed) / calls * left
  return f", about {seconds / 60:.1f} min left in all"


def _unet_calls(audit: Audit, stage: Stage) -> int:
  """The UNet calls of a stage that has ended; an attack counted its own."""
  if stage.kind == "attack":
    rows = read_rows(audit.folder(stage))
    return sum(row.get("unet_calls", 0) for row in rows)
  return plan.cost(audit, stage).unet_calls


def _conclude(
  audit: Audit, record: Recorder, ends: Mapping[Stage, tuple[str, str]]
) -> dict[str, Any]:
  for stage, (state, _) in ends.items():
    if state == document.DONE:
      # A start that was killed may have ended a stage without its cost.
      _add_cost(audit, record, stage, {"seconds": None, "memory_bytes": None})
  found = Findings(audit.given, record.path, audit.names)
  summary = document.build(found, record, ends)
  record.save_summary(summary)
  files.write(record, summary, found)
  if failed(summary):
    _reopen(record)
  else:
    record.mark_done()
  # Last, so that the zip has what the folder has.
  packing.write(record, audit.given)
  return summary


def failed(summary: Mapping[str, Any]) -> int:
  """The number of stages that did not end."""
  found = [one["state"] for one in summary.get("stages", ())]
  return sum(state in (document.FAILED, document.STOPPED) for state in found)


def reached(summary: Mapping[str, Any], gate: str) -> list[str]:
  """The verdicts that fail a gate, in words; a claim that fails does too."""
  found: Sequence[Mapping[str, Any]] = [
    *summary.get("verdicts", ()), *summary.get("claims", ())
  ]  # fmt: skip
  return [
    f"{one['victim']}, {one.get('question') or one['name']}: {one['verdict']}"
    for one in found
    if verdicts.reaches(one["verdict"], gate)
  ]


def status(summary: Mapping[str, Any], gate: str) -> int:
  """The exit status: 4 for a verdict that fails the gate, 3 for a stage.

  It prints why.
  """
  closed, broken = reached(summary, gate), failed(summary)
  lines = [f"--fail_on={gate}: {one}" for one in closed]
  if broken:
    lines.append(f"{broken} stages failed; the page says which")
  if lines and common.is_first():
    print("\n".join(lines), file=sys.stderr)
  return 4 if closed else 3 if broken else 0


def printed(summary: Mapping[str, Any], folder: str = "") -> str:
  """The verdicts for the terminal; empty where another process has them.

  Args:
    summary: the audit's.
    folder: where its page lies; "" for memory.
  """
  if not summary:
    return ""
  lines = [summary["title"]]
  width = max(map(len, summary["victims"]))
  for one in (*summary["verdicts"], *summary["claims"]):
    what = one.get("question") or f"claim {one['name']}"
    lines.append(
      f"{one['victim']:{width}}  {what:10}  {one['verdict']:9}  {one['reason']}"
    )
  lines += [f"note: {note}" for note in summary["notes"]]
  if folder:
    lines.append(f"report: {folder}/report.html")
  return "\n".join(lines)
