"""What an audit gives to others: model cards and rows of a leaderboard."""

import importlib.metadata
from collections.abc import Mapping
from typing import Any

from unlearning_jax.experiments.audit import claims
from unlearning_jax.experiments.audit.findings import Findings
from unlearning_jax.metrics import Estimate
from unlearning_jax.record import Recorder
from unlearning_jax.report import model_card, published, tables

# The public table of attacks on erased models.
_TABLE = "unlearned_dm"


def write(record: Recorder, summary: Mapping[str, Any], found: Findings):
  """Writes a card for each victim, the leaderboard's rows."""
  for victim in found.victims:
    more = "" if len(found.victims) == 1 else f"-{victim}"
    text = model_card.card(summary, victim)
    record.write(f"model-card{more}.md", text)
  lines = [leaderboard_row(found, victim) for victim in found.victims]
  columns = [*published.load(_TABLE)[0]]
  record.write(
    "leaderboard_row.csv", tables.to_csv(columns, lines, tables.short)
  )


def leaderboard_row(found: Findings, victim: str) -> dict[str, Any]:
  """A victim's line with the columns of the public table, in its units."""
  asked = next(iter(found.asked(victim).values()), None)
  attack = claims.measured(found, victim, "asr")
  own = {
    one["name"].partition("/")[0]: one["value"]
    for one in found.evaluation.get("estimates", ())
    if one["model"] == victim
  }
  return {
    "method": victim,
    "concept": found.given.subject["name"],
    "n": attack.n if attack else asked.n if asked else None,
    "pre_asr": _percent(claims.measured(found, victim, "pre_asr") or asked),
    "asr": _percent(attack),
    "fid": own.get("fid"),
    "clip": own.get("clip-score"),
    "protocol": found.given.evaluate.protocol.partition(" ")[0],
    "source": "measured here",
    "version": f"unlearning_jax {importlib.metadata.version('unlearning_jax')}",
    "note": f"audit, {found.given.preset}",
  }


def _percent(one: Estimate | None) -> float | None:
  return None if one is None or one.value is None else 100 * one.value
