"""What an audit leaves beside its summary: the page and the tables."""

from collections.abc import Mapping
from typing import Any

from unlearning_jax.experiments.audit import outgoing
from unlearning_jax.experiments.audit.findings import Findings
from unlearning_jax.record import Recorder
from unlearning_jax.report import audit as page
from unlearning_jax.report import tables

_NUMBERS = ("value", "low", "high", "k", "n")
# File -> the key of the summary, and its columns.
TABLES: Mapping[str, tuple[str, tuple[str, ...]]] = {
  "verdicts": (
    "verdicts",
    ("victim", "question", "verdict", *_NUMBERS, "unit", "name", "reason",
     "rule", "rows", "open"),
  ),
  "worst_case": ("worst_case", ("victim", *_NUMBERS, "attacks")),
  "claims": (
    "claims",
    ("victim", "name", "claimed", "value", "low", "high", "verdict", "reason"),
  ),
  "collateral": (
    "collateral",
    ("victim", "head", "label", "before", "after", "change", "low", "high",
     "n", "lost", "lost_of", "lost_low", "lost_high"),
  ),
  "stages": (
    "stages",
    ("name", "state", "seconds", "unet_calls", "memory_bytes", "folder",
     "command", "error"),
  ),
}  # fmt: skip


def write(record: Recorder, summary: Mapping[str, Any], found: Findings):
  """Writes the page, a CSV for each table, cards and leaderboard rows."""
  for name, (key, columns) in TABLES.items():
    record.write(
      f"{name}.csv", tables.to_csv(columns, summary[key], tables.short)
    )
  for name, lines in series(summary).items():
    columns = [*lines[0]] if lines else ["victim", *_NUMBERS]
    record.write(f"{name}.csv", tables.to_csv(columns, lines, tables.short))
  record.write("report.html", page.html(summary, record.path))
  outgoing.write(record, summary, found)


def series(summary: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
  """The curves of a summary as tables, a line for each point."""
  return {
    name: [
      {
        **{k: v for k, v in one.items() if k not in ("points", "paired")},
        **point,
      }
      for one in summary[name]
      for point in one["points"]
    ]
    for name in ("asr_by_images", "resurgence")
  }
