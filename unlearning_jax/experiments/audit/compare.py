"""Compares two audits: question by question, row by row where they share rows.

  compare("runs/before", "runs/after")

Rows pair where both audits have the same id, prompt and seed, and did the same
with them: only attacks and tunings count that both have with equal settings.
"""

import dataclasses
import pathlib
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np

from unlearning_jax import durable, renamed, settings, statistics
from unlearning_jax.concepts import check_choice
from unlearning_jax.experiments import finetune
from unlearning_jax.experiments.audit.findings import NAMED, UNTRIED, Findings
from unlearning_jax.experiments.audit.settings import Settings, Stage
from unlearning_jax.metrics import verdicts
from unlearning_jax.record import read_rows, seal

# Better first. What was not shown is no better than a warning.
_ORDER = {
  verdicts.PASS: 0, verdicts.WARN: 1, verdicts.NOT_SHOWN: 1, verdicts.FAIL: 2,
}  # fmt: skip
# The attack or tuning ("" for neither), id, prompt, seed.
Key = tuple[str, str, str, int]
Outcomes = Mapping[Key, bool]


@dataclasses.dataclass(frozen=True)
class Change:
  """One question of one victim in both audits.

  Attributes:
    victim: its name in the second audit.
    question: one of `verdicts.QUESTIONS`.
    before: the first audit's verdict, with its figures.
    after: the second's.
    pairs: rows that both have; 0 where they share none.
    worse: pairs that went wrong only in the second.
    better: pairs that went wrong only in the first.
    p: McNemar's exact p of these; None without pairs.
  """

  victim: str
  question: str
  before: Mapping[str, Any]
  after: Mapping[str, Any]
  pairs: int = 0
  worse: int = 0
  better: int = 0
  p: float | None = None

  @property
  def regressed(self) -> str:
    """`fail` for a sure regression, `warn` for a worse verdict, or ""."""
    was, now = (_ORDER[one["verdict"]] for one in (self.before, self.after))
    sure = self.p is not None and self.p < verdicts.SURE
    paired = sure and self.worse > self.better
    if paired or (now > was and self.after["verdict"] == verdicts.FAIL):
      return verdicts.FAIL
    return verdicts.WARN if now > was else ""


def compare(first: str, second: str) -> list[Change]:
  """The changes from one audit to another.

  Victims pair by name; where each audit has one victim, these two pair.

  Args:
    first: the folder of a finished audit.
    second: that of another.

  Raises:
    ValueError: a folder holds no finished audit, they have other concepts,
      rules, protocols, presets or bases, or no victim in common.
  """
  with durable.explaining(f"compare: {first}, {second}", values=False):
    return _compared(first, second)


def _compared(first: str, second: str) -> list[Change]:
  (before, old), (after, new) = (_read(path) for path in (first, second))
  for key in ("subject", "rules", "protocol", "preset", "base"):
    was, now = (_fact(one, key) for one in (before, after))
    if was != now:
      raise ValueError(
        f"compare: {second} has {key} {now}, and {first} {was}; "
        "their verdicts do not compare"
      )
  pairs = [(name, name) for name in before["victims"] if name in new.victims]
  if not pairs and len(old.victims) == len(new.victims) == 1:
    pairs = [(*old.victims, *new.victims)]
  if not pairs:
    raise ValueError(
      f"compare: {first} has {', '.join(old.victims)}, and {second} "
      f"{', '.join(new.victims)}: no victim in common"
    )
  found, same = [], _same(old.given, new.given)
  for was, now in pairs:
    theirs, ours = outcomes(old, was), outcomes(new, now)
    for question in verdicts.QUESTIONS:
      one = Change(
        now,
        question,
        _verdict(before, was, question),
        _verdict(after, now, question),
      )
      found.append(_paired(one, theirs[question], ours[question], same))
  return found


def _fact(summary: Mapping[str, Any], key: str) -> Any:
  # The same base may lie in another folder.
  return summary[key]["fingerprint"] if key == "base" else summary[key]


def _same(old: Settings, new: Settings) -> set[str]:
  """The attacks and tunings that two audits have with equal settings."""
  found = {""}
  for name, one in old.attacks.items():
    other = new.attacks.get(name)
    if other and (one.method, one.hparams) == (other.method, other.hparams):
      found.add(f"attack/{name}")
  for name, one in old.tunings.items():
    other = new.tunings.get(name)
    if other and old.data == new.data and _tuned(one) == _tuned(other):
      found.add(f"resurgence/{name}")
  return found


def _tuned(one: finetune.Settings) -> dict[str, Any]:
  """The settings that a tuning depends on."""
  free = settings.free(type(one))
  plain = settings.plain(one)
  return {key: value for key, value in plain.items() if key not in free}


def _read(path: str) -> tuple[dict[str, Any], Findings]:
  folder = pathlib.Path(path)
  files = [folder / name for name in ("summary.json", "config.json", "DONE")]
  if not all(file.is_file() for file in files):
    raise ValueError(f"compare: {path} holds no finished audit")
  seal.check(folder)
  summary, config = map(durable.read_json, files[:2])
  if "verdicts" not in summary:
    raise ValueError(f"compare: {path} is a run, and no audit")
  with durable.explaining(files[1]):
    given = settings.build(Settings, renamed.config(config))
  return summary, Findings(given, folder, summary["victims"])


def _verdict(
  summary: Mapping[str, Any], victim: str, question: str
) -> Mapping[str, Any]:
  named = (victim, question)
  (one,) = (
    one
    for one in summary["verdicts"]
    if (one["victim"], one["question"]) == named
  )
  return one


def outcomes(found: Findings, victim: str) -> dict[str, Outcomes]:
  """Question -> which of its rows went wrong, of those that were judged."""
  rows = [*found.rows.get(victim, {}).values()]
  erased: Mapping[str, str] = (found.evaluation.get("erased") or [{}])[0]
  result: dict[str, dict[Key, bool]] = {
    question: {} for question in verdicts.QUESTIONS
  }
  for row in rows if erased else ():
    if "judged" not in row:
      continue
    if row["group"] == "others":
      wrong = [
        row["judged"][head] != asked
        for head, asked in row["attributes"].items()
        if asked is not None
      ]
      result["kept"][_key(row)] = any(wrong)
    elif row["group"] in NAMED:
      result["gone"][_key(row)] = _shows(row, erased)
  for name, attacked in found.attacks(victim).items():
    for row in attacked:
      if row["success"] is not None and row["status"] not in UNTRIED:
        result["attacked"][_key(row, f"attack/{name}")] = row["success"]
  for what in found.given.tunings:
    _add_tuned(result["stays"], found, victim, what)
  return {**result}


def _add_tuned(
  result: dict[Key, bool],
  found: Findings,
  victim: str,
  what: str,
):
  """Adds the rows of the last checkpoint."""
  stage = Stage("resurgence", victim, what)
  summary = found.summary(stage)
  if not summary.get("erased"):
    return
  erased, last = summary["erased"][0], summary["models"][-1]
  for row in read_rows(found.root / str(stage)):
    asks = row["group"] in NAMED and "judged" in row
    if row["model"] == last and asks:
      result[_key(row, f"resurgence/{what}")] = _shows(row, erased)


def _key(row: Mapping[str, Any], what: str = "") -> Key:
  # The part before the slash is the model's name.
  name = str(row["id"]).rpartition("/")[2]
  return what, name, row["prompt"], row["seed"]


def _shows(row: Mapping[str, Any], erased: Mapping[str, str]) -> bool:
  return row["judged"].get(erased["head"]) == erased["class"]


def _paired(
  one: Change, theirs: Outcomes, ours: Outcomes, same: Container[str]
) -> Change:
  """The change with its pairs: a row goes wrong if it does under any attack."""
  rows: dict[tuple[str, str, int], list[Key]] = {}
  for key in sorted(theirs.keys() & ours.keys()):
    if key[0] in same:
      rows.setdefault(key[1:], []).append(key)
  if not rows:
    return one
  before, after = (
    np.array([any(some[key] for key in keys) for keys in rows.values()])
    for some in (theirs, ours)
  )
  return dataclasses.replace(
    one,
    pairs=len(rows),
    worse=int((after & ~before).sum()),
    better=int((before & ~after).sum()),
    p=statistics.mcnemar(before, after),
  )


def regressions(changes: Sequence[Change], gate: str) -> list[Change]:
  """The changes that fail a gate; `warn` also counts a worse verdict.

  Raises:
    ValueError: the gate is neither `warn` nor `fail` nor "".
  """
  check_choice("fail_on", gate, ("", verdicts.WARN, verdicts.FAIL))
  failing = {"": (), verdicts.FAIL: (verdicts.FAIL,)}.get(
    gate, (verdicts.WARN, verdicts.FAIL)
  )
  return [one for one in changes if one.regressed in failing]


def printed(changes: Sequence[Change]) -> str:
  """A line for each question, and what its pairs say."""
  lines = []
  for one in changes:
    line = (
      f"{one.victim}  {one.question:9} {one.before['verdict']:9} -> "
      f"{one.after['verdict']:9}"
    )
    if one.pairs:
      line += (
        f"  {one.pairs} rows in both: {one.worse} worse, {one.better} better, "
        f"p = {one.p:.2g}"
      )
    if one.regressed:
      line += "  WORSE" if one.regressed == verdicts.FAIL else "  worse verdict"
    lines.append(line)
  return "\n".join(lines)
