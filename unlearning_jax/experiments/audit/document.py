"""The document of an audit: its `summary.json`, which the page shows."""

import collections
import re
from collections.abc import Mapping, Sequence
from typing import Any

from unlearning_jax.experiments import drawing
from unlearning_jax.experiments.attack import victims
from unlearning_jax.experiments.audit import claims, pictures
from unlearning_jax.experiments.audit.findings import Findings
from unlearning_jax.experiments.audit.settings import Settings, Stage
from unlearning_jax.metrics import accuracy, verdicts
from unlearning_jax.metrics.verdicts import Verdict
from unlearning_jax.record import Recorder
from unlearning_jax.report import audit as page
from unlearning_jax.report import index, published
from unlearning_jax.report.document import label

# States of a stage.
DONE, FAILED, SKIPPED, STOPPED = "done", "failed", "skipped", "stopped"
# Column of a published table -> its name in an audit.
_RATES = ("pre_asr", "asr")
_NUMBERS = ("value", "low", "high", "k", "n")
_COSTS = ("seconds", "unet_calls", "memory_bytes")


def build(
  found: Findings, record: Recorder, states: Mapping[Stage, tuple[str, str]]
) -> dict[str, Any]:
  """Puts together what the stages found.

  Args:
    found: their records.
    record: the audit's own, with a row for the cost of each stage.
    states: stage -> `done`, `failed`, `skipped` or `stopped`, and why.
  """
  given, subject = found.given, found.given.subject
  names = ", ".join(found.victims)
  title = (
    f"Audit of {names}: is {subject['name']!r} gone, and does it stay gone?"
  )
  answers = {victim: found.verdicts(victim) for victim in found.victims}
  costs = {row["id"]: row for row in record.rows()}
  stages = [
    _stage(record, stage, state, costs.get(str(stage), {}))
    for stage, state in states.items()
  ]
  # The first start's, so that a run that was killed tells the same.
  start = (record.provenance.get("runs") or [{}])[0]
  return {
    "title": given.title or title,
    "subject": subject,
    "base": {
      "source": given.evaluate.model,
      "fingerprint": start.get("base_fingerprint", ""),
    },
    "protocol": given.evaluate.protocol,
    "preset": given.preset,
    "budget": budget(given),
    "rules": given.rules,
    "victims": list(found.victims),
    "notes": notes(found, answers, states),
    "verdicts": [
      _verdict(found, victim, one)
      for victim, several in answers.items()
      for one in several
    ],
    "worst_case": [_worst(found, victim) for victim in found.victims],
    "claims": claims.compared(found),
    "published": _published(given.evaluate.protocol, found),
    "stages": stages,
    "pictures": pictures.chosen(found),
    "asr_by_images": _by_images(found),
    "resurgence": _resurgence(found),
    "collateral": _collateral(found),
    "judge_errors": found.evaluation.get("judge_errors", []),
    "collapse": found.evaluation.get("collapse", {}),
    "cost": [
      {"stage": one["name"], **{k: one[k] for k in _COSTS}}
      for one in stages
      if one["state"] == DONE
    ],
    "provenance": record.provenance,
  }


def budget(given: Settings) -> str:
  """What a preset came to, in words."""
  groups = collections.Counter(
    row["group"] for row in drawing.rows(given.evaluate)
  )
  said = {"others": "of something else"}
  parts = [
    f"{n} rows {said.get(group) or label(group)}" for group, n in groups.items()
  ]
  hparams = [victims.bind(one).h for one in given.attacks.values()]
  if hparams:
    blocks = max(getattr(h, "blocks", 0) for h in hparams)
    steps = max(getattr(h, "iterations", 0) for h in hparams)
    parts.append(f"{1 + blocks} images of an attacked row")
    parts += [f"{steps} steps of search before each but the first"] * bool(
      steps
    )
  parts += [
    f"{one.num_steps} steps of tuning ({name})"
    for name, one in given.tunings.items()
  ]
  if given.evaluate.kernels != "exact":
    parts.append(f"{given.evaluate.kernels} kernels")
  return ", ".join(parts)


def notes(
  found: Findings,
  answers: Mapping[str, Sequence[Verdict]],
  states: Mapping[Stage, tuple[str, str]],
) -> list[str]:
  """What a reader must know before the verdicts."""
  given = found.given
  said = [
    f"{stage.title}: {state}. {why.strip().splitlines()[-1]}"
    for stage, (state, why) in states.items()
    if state in (FAILED, STOPPED) and why.strip()
  ]
  said += [f"No {kind}: {why}." for kind, why in given.missing.items()]
  if given.evaluate.judge is None:
    said.append("No judge looked at the pictures, so no rate could be counted.")
  for victim in found.victims:
    why = found.collapsed(found.evaluation, victim)
    said += [f"{victim} collapsed: {why}."] if why else []
    for name, rows in found.attacks(victim).items():
      lost = name not in verdicts.LUCK and not any(
        row["status"] == "success" for row in rows
      )
      tried = sum(row["status"] not in ("pre", "dropped") for row in rows)
      if lost and not tried:
        said.append(f"{name} had no row of {victim} to attack.")
      elif lost:
        said.append(
          f"{name} won none of the {tried} rows of {victim} that it attacked. "
          "Nothing here shows that it can win."
        )
  if found.evaluation and not found.asked("base"):
    said.append(
      "No prompt asks for the concept, so nothing shows that the base has it: "
      "there is no positive control."
    )
  shown = next(iter(found.asked("base").values()), None)
  if shown is not None and not shown.k:
    said.append("The base's own pictures never show the concept.")
  # The page's head names the protocol already.
  own = found.evaluation.get("notes", [])
  return said + [note for note in own if not note.startswith("Protocol ")]


def _verdict(found: Findings, victim: str, one: Verdict) -> dict[str, Any]:
  places = {
    "attacked": Stage("attack", victim, found.strongest(victim)),
    "stays": Stage("resurgence", victim, found.returning(victim)),
  }
  place = str(places.get(one.question, Stage("evaluate")))
  return {
    "victim": victim,
    "question": one.question,
    "title": one.title,
    "verdict": one.verdict,
    "reason": one.reason,
    "rule": one.rule,
    "open": list(one.open),
    "name": one.estimate.name if one.estimate else "",
    **plain(one.estimate),
    "unit": one.estimate.unit if one.estimate else "",
    "rows": page.rows(found.root, place),
  }


def plain(one: Any) -> dict[str, Any]:
  """The numbers of an estimate; None where there is none."""
  return {key: getattr(one, key, None) for key in _NUMBERS}


def _worst(found: Findings, victim: str) -> dict[str, Any]:
  one = found.worst(victim)
  numbers = plain(one.estimate)
  return {"victim": victim, **numbers, "attacks": list(one.attacks)}


def _stage(
  record: Recorder,
  stage: Stage,
  state: tuple[str, str],
  cost: Mapping[str, Any],
) -> dict[str, Any]:
  runs = record.provenance.get("runs") or [{}]
  command = re.sub(r" --(only|skip)[= ]\S+", "", runs[0].get("command", ""))
  folder = record.path / str(stage)
  own_page = f"{stage}/report.html"
  return {
    "name": str(stage),
    "title": stage.title,
    "state": state[0],
    "error": state[1],
    "folder": str(stage) if folder.is_dir() else "",
    # A notebook and a script of Python have no such command.
    "command": f"{command} --only={stage}"
    if index.verb(command) == "audit"
    else "",
    "page": own_page if (record.path / own_page).is_file() else "",
    **{key: cost.get(key) for key in _COSTS},
  }


def _by_images(found: Findings) -> list[dict[str, Any]]:
  lines = []
  for victim in found.victims:
    for name in found.attacks(victim):
      summary = found.summary(Stage("attack", victim, name))
      points = [
        {
          "images": int(one["name"].partition("@")[2]),
          **{key: one[key] for key in _NUMBERS},
        }
        for one in summary.get("by_images", ())
      ]
      control = found.given.attacks[name].method == "controls"
      lines.append(
        {
          "victim": victim,
          "series": name,
          "control": control,
          "points": points,
          "paired": summary.get("control", {}).get("paired"),
        }
      )
  return lines


def _resurgence(found: Findings) -> list[dict[str, Any]]:
  return [
    {
      "victim": victim,
      "train": what,
      "data": found.given.data,
      "points": [{"step": step, **plain(one)} for step, (one, _) in at.items()],
    }
    for victim in found.victims
    for what in found.given.tunings
    if (at := found.points(victim, what))
  ]


def _collateral(found: Findings) -> list[dict[str, Any]]:
  document, lines = found.evaluation, []
  if not document:
    return []
  base = {m["name"]: m for m in document["measures"][document["models"][0]]}
  for victim in found.victims:
    own = {m["name"]: m for m in document["measures"].get(victim, ())}
    changes = {c["name"]: c for c in document["changes"].get(victim, ())}
    heads, classes = found.lost(victim)
    for name in base.keys() & own.keys():
      head, label, group = name.split("/", 2)
      if group != "others" or name not in changes:
        continue
      change = changes[name]
      # Resampling pairs or prompts that are all alike gives no interval: its
      # width of 0 would look like certainty.
      alike = change["low"] == change["high"]
      whole = label == accuracy.ALL
      lost = heads.get(head) if whole else classes.get(f"{head}/{label}")
      lines.append(
        {
          "victim": victim,
          "head": head,
          "label": label,
          "before": base[name]["value"],
          "after": own[name]["value"],
          "change": change["value"],
          "low": None if alike else change["low"],
          "high": None if alike else change["high"],
          "n": own[name]["n"],
          "lost": getattr(lost, "k", None),
          "lost_of": getattr(lost, "n", None),
          "lost_low": getattr(lost, "low", None),
          "lost_high": getattr(lost, "high", None),
        }
      )
  return sorted(lines, key=lambda x: (x["victim"], x["head"], x["label"]))


def _published(signed: str, found: Findings) -> list[dict[str, Any]]:
  erased = found.evaluation.get("erased", [])
  concepts = [one[key] for one in erased for key in ("class", "head")]
  if not (signed and concepts):
    return []
  return [
    {
      "row": f"{line['method']} ({table.replace('_', ' ')})",
      "numbers": {
        key: line[key] / (100 if key in _RATES else 1)
        for key in published.numbers(lines)
        if line[key] is not None
      },
      "source": f"{line['source']}, {line['version']}",
    }
    for table, lines in published.beside(signed, concepts).items()
    for line in lines
  ]
