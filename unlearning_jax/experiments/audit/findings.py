"""What an audit's stages found about a victim, as estimates and verdicts.

It reads the records that the stages left; a stage that has not ended is absent.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from unlearning_jax import durable, renamed
from unlearning_jax.experiments.attack.control import own
from unlearning_jax.experiments.audit.settings import Settings, Stage
from unlearning_jax.metrics import Estimate, asr, verdicts
from unlearning_jax.metrics.verdicts import Evidence, Point, Verdict
from unlearning_jax.record import read_rows, seal
from unlearning_jax.report.document import label

# The kinds of prompts that ask for the concept; the first that a protocol has
# decides.
_GROUPS = ("explicit", "table", "synonyms", "paraphrases", "implied")
# The kinds of prompts that name the concept.
NAMED = _GROUPS[:2]
# How a row ends that was left out, or whose attack broke off.
UNTRIED = ("dropped", "numerical")
_FIELDS = {field.name for field in dataclasses.fields(Estimate)}


@dataclasses.dataclass(frozen=True)
class Worst:
  """What all attacks and controls on a victim won together.

  Attributes:
    estimate: the rows that any won, of those that count; None without any.
    attacks: the attacks and controls behind it.
    untried: rows that do not count, since no attack tried them to the end.
    images: the most images of a row, over all attacks and controls.
  """

  estimate: Estimate | None = None
  attacks: tuple[str, ...] = ()
  untried: int = 0
  images: int = 1


@dataclasses.dataclass(eq=False)
class Findings:
  """The records of an audit.

  Attributes:
    given: the settings.
    root: the audit's folder.
    victims: their names.
  """

  given: Settings
  root: pathlib.Path
  victims: Sequence[str]

  @functools.cached_property
  def summary(self) -> Callable[[Stage], dict[str, Any]]:
    """A stage's summary, read once; empty where it has not ended."""
    return functools.cache(self._summary)

  @functools.cached_property
  def attacks(self) -> Callable[[str], dict[str, list[dict[str, Any]]]]:
    """Attacks and controls on a victim that have ended -> rows, read once."""
    return functools.cache(self._attacks)

  def _summary(self, stage: Stage) -> dict[str, Any]:
    folder = self.root / str(stage)
    if not self._has_ended(stage):
      return {}
    with durable.explaining(folder / "summary.json"):
      return renamed.summary(durable.read_json(folder / "summary.json"))

  @functools.cached_property
  def evaluation(self) -> dict[str, Any]:
    """The summary of the evaluation."""
    return self.summary(Stage("evaluate"))

  @functools.cached_property
  def rows(self) -> dict[str, dict[str, dict[str, Any]]]:
    """Model -> id -> row of the evaluation."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in read_rows(self.root / "evaluate") if self.evaluation else ():
      own = found.setdefault(row["model"], {})
      own[row["id"].partition("/")[2]] = row
    return found

  def _has_ended(self, stage: Stage) -> bool:
    """Whether a stage has ended, with the files that it wrote."""
    folder = self.root / str(stage)
    if stage not in self._whole and (folder / seal.NAME).exists():
      seal.check(folder)
      self._whole.add(stage)
    return stage in self._whole

  @functools.cached_property
  def _whole(self) -> set[Stage]:
    """Stages whose files were compared: weights of gigabytes may be theirs."""
    return set()

  def _attacks(self, victim: str) -> dict[str, list[dict[str, Any]]]:
    return {
      name: own(read_rows(self.root / str(stage)))
      for name in self.given.attacks
      for stage in [Stage("attack", victim, name)]
      if self._has_ended(stage)
    }

  def asked(
    self, model: str, document: Mapping[str, Any] | None = None
  ) -> dict[str, Estimate]:
    """Kind of prompt -> how often a model shows the concept, judged.

    Args:
      model: a model of the evaluation, the base or a victim.
      document: another evaluation's summary; None for the audit's.
    """
    document = self.evaluation if document is None else document
    if not document.get("erased") or model not in document["measures"]:
      return {}
    one = document["erased"][0]
    measures = {m["name"]: m for m in document["measures"][model]}
    found = {
      label(group): estimate(measures[name])
      for group in _GROUPS
      for name in [f"{one['head']}/{one['class']}/{group}"]
      if name in measures
    }
    # The field's own count, where the protocol has its column.
    for other in document.get("estimates", ()):
      own = other["name"] == "pre_asr" and other["model"] == model
      if own and other["value"] is not None:
        found = {"by the table's prompts": estimate(other), **found}
    return found

  def evidence(self, victim: str) -> Evidence:
    """The controls behind a victim's verdicts."""
    by_kind = self.asked(self._base)
    base = next(iter(by_kind.values()), None)
    errors = self.evaluation.get("judge_errors") or [{}]
    false = errors[0].get("false_positives")
    return Evidence(
      base,
      estimate({"name": "false positives", **false}) if false else None,
      self.collapsed(self.evaluation, victim),
      by_kind,
    )

  @property
  def _base(self) -> str:
    return self.evaluation.get("models", ["base"])[0]

  @staticmethod
  def collapsed(document: Mapping[str, Any], model: str) -> str:
    """Why a model has collapsed, in an evaluation's summary; "" if not."""
    found = document.get("collapse", {}).get(model, {})
    return "; ".join(found.get("reasons", ()))

  def lost(
    self, victim: str
  ) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
    """What the base drew as asked and a victim does not, by head and class.

    Only prompts count that do not ask for the concept.
    """
    heads: dict[str, list[bool]] = {}
    classes: dict[str, list[bool]] = {}
    base, own = self.rows.get(self._base, {}), self.rows.get(victim, {})
    for i in sorted(base.keys() & own.keys()):
      before, after = base[i], own[i]
      if before["group"] != "others" or "judged" not in before:
        continue
      for head, asked in before["attributes"].items():
        if asked is None or before["judged"][head] != asked:
          continue
        gone = after["judged"][head] != asked
        heads.setdefault(head, []).append(gone)
        classes.setdefault(f"{head}/{asked}", []).append(gone)
    return shares(heads), shares(classes)

  def worst(self, victim: str) -> Worst:
    """How many rows any attack or control won, of those that were attacked.

    A row counts only if an attack tried it. Where none ended, the controls'
    rows count.
    """
    tried = {
      name: {row["id"]: row for row in rows if row["status"] not in UNTRIED}
      for name, rows in self.attacks(victim).items()
    }
    tried = {name: rows for name, rows in tried.items() if rows}
    every = [row for rows in tried.values() for row in rows.values()]
    if any(row["success"] is None for row in every):
      return Worst()
    searched = {
      i for name in tried if name not in verdicts.LUCK for i in tried[name]
    }
    counted = searched or {row["id"] for row in every}
    won = {row["id"] for row in every if row["success"]}
    listed = {r["id"] for rows in self.attacks(victim).values() for r in rows}
    # A judge that errs in any picture of any attack makes the row a success.
    budgets = [max(r["budget"] for r in rows.values()) for rows in
               tried.values()]  # fmt: skip
    return Worst(
      verdicts.share("worst case", len(won & counted), len(counted)),
      tuple(tried),
      len(listed - counted),
      1 + sum(budget - 1 for budget in budgets),
    )

  def beating(self, victim: str) -> str:
    """The attack that surely wins more rows than random tokens, in words."""
    every = self.attacks(victim)
    lucky = every.get("random", [])
    for name, rows in every.items():
      judged = all(row["success"] is not None for row in (*rows, *lucky))
      if not (lucky and judged) or name in verdicts.LUCK:
        continue
      one = asr.against(rows, lucky)
      if one["p"] < verdicts.SURE and one["only_attack"] > one["only_control"]:
        return (
          f"{name} won {one['only_attack']} rows that random tokens did not, "
          f"and random tokens won {one['only_control']} that it did not: more "
          f"than chance (exact McNemar, p = {one['p']:.2g})."
        )
    return ""

  def strongest(self, victim: str) -> str:
    """The attack that won most rows; a control where no attack has ended."""
    won = {
      (
        name not in verdicts.LUCK,
        sum(bool(row["success"]) for row in rows),
      ): name
      for name, rows in self.attacks(victim).items()
    }
    return won[max(won)] if won else ""

  def checkpoints(self, victim: str) -> dict[tuple[int, str], Point]:
    """(step, tuning) -> its point, of every checkpoint."""
    return {
      (step, what): point
      for what in self.given.tunings
      for step, point in self.points(victim, what).items()
      if step
    }

  def returning(self, victim: str) -> str:
    """The tuning of the checkpoint that decides; "" for none."""
    points = self.checkpoints(victim)
    return verdicts.showing_most(points)[1] if points else ""

  def points(self, victim: str, what: str) -> dict[int, Point]:
    """Step -> how often a tuned victim shows the concept, and why it collapsed.

    Step 0 is the victim before.
    """
    found = self.summary(Stage("resurgence", victim, what))
    asked = {
      int(model.partition("-")[2]): (
        next(iter(self.asked(model, found).values()), None),
        self.collapsed(found, model),
      )
      for model in found.get("models", ())
      if model.startswith("step-")
    }
    if not asked:
      return {}
    before = next(iter(self.asked(victim, found).values()), None)
    asked[0] = before, self.collapsed(found, victim)
    return {
      step: (one, why)
      for step, (one, why) in sorted(asked.items())
      if one is not None
    }

  def verdicts(self, victim: str) -> list[Verdict]:
    """The answers to all questions, in order."""
    rules = verdicts.rules(self.given.rules)
    seen = self.evidence(victim)
    gone = verdicts.gone(self.asked(victim), seen, rules)
    worst = self.worst(victim)
    points = {
      f"step {step} ({what})": point
      for (step, what), point in self.checkpoints(victim).items()
    }
    return [
      gone,
      verdicts.attacked(
        worst.estimate,
        worst.attacks,
        seen,
        rules,
        worst.images,
        self.beating(victim),
        worst.untried,
      ),
      verdicts.stays(points, gone.verdict, seen, rules),
      verdicts.kept(*self.lost(victim), seen.collapsed, rules),
      verdicts.quality(self.broken(victim), seen.collapsed, rules),
    ]

  def broken(self, victim: str) -> Estimate | None:
    """A victim's pictures of one color or of noise, whichever are more."""
    found = self.evaluation.get("collapse", {}).get(victim, {})
    counted = [
      found["figures"][name]
      for name in ("one color", "noise")
      if name in found.get("figures", {})
    ]
    one = max(counted, key=lambda one: one["k"], default=None)
    return one and verdicts.share("broken pictures", one["k"], one["n"])


def estimate(plain: Mapping[str, Any]) -> Estimate:
  """An estimate from its fields."""
  return Estimate(**{k: v for k, v in plain.items() if k in _FIELDS})


def shares(outcomes: Mapping[str, Iterable[bool]]) -> dict[str, Estimate]:
  """Name -> the share of its outcomes that are true."""
  found = {
    name: verdicts.share(name, sum(some), len(some))
    for name, some in ((n, [*o]) for n, o in outcomes.items())
  }
  return {name: one for name, one in found.items() if one is not None}


def rate(rows: Sequence[Mapping[str, Any]], name: str) -> Estimate | None:
  """A rate of an attack's rows by its name; None where it has none."""
  for one in asr.measure(rows) if rows else ():
    if one.name == name:
      return Estimate(**one._asdict(), method="wilson")
  return None
