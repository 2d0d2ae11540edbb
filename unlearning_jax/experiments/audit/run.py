"""Runs an audit: its stages one after another, then the page."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from unlearning_jax import convert, sharding
from unlearning_jax.experiments import cells, common
from unlearning_jax.experiments.audit import document, files, plan
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
  record = open_record()
  audit.open(record)
  _begin(audit, record)
  skipped = {one: why for one in audit.stages if (why := audit.why_not(one))}
  store = cells.Folders[Stage](
    record.path, check=lambda stage: seal.check(audit.folder(stage))
  )
  left = [one for one in audit.stages if one not in skipped]
  cells.run(store, left, lambda some: _work(audit, record, *some))
  states = {one: (document.SKIPPED, skipped[one]) for one in skipped}
  for one in left:
    if store.ended(one):
      states[one] = document.DONE, ""
    else:
      why = store.why(one) or "the next start tries it again"
      failed = one in store.failed
      state = document.FAILED if failed else document.STOPPED
      states[one] = state, store.failed.get(one, why)
  if not record.is_writer:
    return {}
  return _conclude(audit, record, {one: states[one] for one in audit.stages})


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
  cost = audit.run(stage)
  if record.is_writer and str(stage) not in record.done_ids():
    calls = _unet_calls(audit, stage)
    record.append_row({"id": str(stage), **cost, "unet_calls": calls})


def _left(audit: Audit, record: Recorder) -> str:
  """How long the rest takes on this device, by what has ended; "" at first."""
  ended = {row["id"]: row for row in record.rows()}
  calls = sum(row["unet_calls"] for row in ended.values())
  left = sum(
    one.unet_calls for one in plan.costs(audit) if str(one.stage) not in ended
  )
  if not calls:
    return ""
  seconds = sum(row["seconds"] for row in ended.values()) / calls * left
  return f", about {seconds / 60:.1f} min left in all"


def _unet_calls(audit: Audit, stage: Stage) -> int:
  """The UNet calls of a stage that has ended; an attack counted its own."""
  if stage.kind == "attack":
    rows = read_rows(audit.folder(stage))
    return sum(row.get("unet_calls", 0) for row in rows)
  (one,) = (c for c in plan.costs(audit) if c.stage == stage)
  return one.unet_calls


def _conclude(
  audit: Audit, record: Recorder, states: Mapping[Stage, tuple[str, str]]
) -> dict[str, Any]:
  found = Findings(audit.given, record.path, audit.names, audit.stages)
  summary = document.build(found, record, states)
  record.save_summary(summary)
  files.write(record, summary, found)
  if all(state in (document.DONE, document.SKIPPED) for state, _ in
         states.values()):  # fmt: skip
    record.mark_done()
  return summary


def failed(summary: Mapping[str, Any]) -> int:
  """The number of stages that did not end."""
  states = [one["state"] for one in summary.get("stages", ())]
  return sum(state in (document.FAILED, document.STOPPED) for state in states)


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
