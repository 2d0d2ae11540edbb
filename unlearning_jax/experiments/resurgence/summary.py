"""The results of a study of resurgence: summary, CSV, page."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from unlearning_jax.experiments.resurgence import keys, plan
from unlearning_jax.experiments.resurgence.keys import Cell
from unlearning_jax.experiments.resurgence.study import Study
from unlearning_jax.metrics import study as statistics
from unlearning_jax.metrics.study import Condition
from unlearning_jax.report import resurgence as page
from unlearning_jax.report import tables

_COLUMNS = (
  *Condition._fields, "seeds", "step",
  "group", "rate", "low", "high", "k", "n", "r_norm", "r_low", "r_high",
  "r_median", "r_deviation", "k_by_seed", "lost", "gained", "p", "p_by_seed",
  "lost_undefended", "gained_undefended", "p_undefended", "harmonic", "area",
  *statistics.EARLY,
)  # fmt: skip
_PREDICTOR = ("among", "name", "when", "value", "low", "high", "n")
Stored = Mapping[str, Mapping[str, Any]]


def measured(study: Study) -> list[Cell]:
  """The cells that have their last row."""
  lasts = {c: study.settings.algorithms[c.algorithm].checkpoints[-1]
           for c in study.settings.cells}  # fmt: skip
  return [c for c, last in lasts.items() if str(c.at(last)) in study.rows]


def records(study: Study, cells: Sequence[Cell]) -> list[dict[str, Any]]:
  """What `metrics.study` reads of each cell."""
  rows, found = study.rows, []
  for cell in cells:
    steps = study.settings.algorithms[cell.algorithm].checkpoints
    prompts: dict[str, list[str]] = {}
    listed = study.rows_of(cell.concept, cell.seed)
    for row in [*listed, *study.tuned_rows_of(cell)]:
      prompts.setdefault(row["group"], []).append(row["prompt"])
    before, gone = (
      rows[str(one())]["right"] | rows[str(one(cell.tuning_set))]["right"]
      for one in (cell.base, cell.erased)
    )
    found.append(
      statistics.record(
        cell.condition,
        cell.seed,
        before,
        gone,
        {step: rows[str(cell.at(step))] for step in steps},
        prompts,
        rows[str(cell.at(0))]["predictors"],
        plan.kind(study.settings, cell),
      )
    )
  return found


def document(study: Study) -> dict[str, Any]:
  """The document that `report.resurgence` shows."""
  settings = study.settings
  cells = measured(study)
  known = records(study, cells)
  found = statistics.summarize(known, settings.revival_threshold)
  own = _metrics(study, cells)
  for one in found:
    if one["condition"] in own:
      one["metrics"] = own[one["condition"]]
  return {
    "title": settings.title,
    "threshold": settings.revival_threshold,
    "cells": {"planned": len(settings.cells), "measured": len(known)},
    "failed": list(_failures(study.rows)),
    "conditions": found,
    "predictors": statistics.predictors(known),
  }


def _failures(rows: Stored) -> Iterator[dict[str, str]]:
  for name, row in rows.items():
    if "failed" in row:
      key = keys.parse(name)
      of = key.of if isinstance(key, keys.Failure) else key
      yield {"cell": str(of), "why": row["failed"]}


def _metrics(
  study: Study, cells: Sequence[Cell]
) -> dict[str, list[dict[str, Any]]]:
  """The user's metrics by condition, over all its seeds and models."""
  found: dict[str, list[dict[str, Any]]] = {}
  together: dict[Condition, dict[str, None]] = {}
  for cell in cells:
    steps = study.settings.algorithms[cell.algorithm].checkpoints
    names = together.setdefault(cell.condition, {})
    names |= {
      str(key): None
      for one in (cell.base, cell.erased)
      for key in (one(), one(cell.tuning_set))
    }
    names |= {str(cell.at(step)): None for step in steps}
  for metric in study.metrics:
    for condition, names in together.items():
      states = [study.rows[n]["metrics"][metric.name] for n in names]
      whole = functools.reduce(metric.merge, states, metric.init())
      found.setdefault(str(condition), []).extend(
        dataclasses.asdict(one) for one in metric.compute(whole)
      )
  return found


def write(study: Study):
  """Writes `summary.json`, two CSVs and `report.html`, and prints."""
  run, found = study.run, document(study)
  run.save_summary(found)
  run.write("results.csv", table(found["conditions"]))
  lines = found["predictors"]
  run.write("predictors.csv", tables.to_csv(_PREDICTOR, lines, tables.short))
  run.write("report.html", page.render(found, run.provenance))
  print(page.printed(found))
  print(f"report: {run.path / 'report.html'}")


def table(conditions: Sequence[Mapping[str, Any]]) -> str:
  """A line of CSV for every rate at every step; see docs/finetune.md."""
  lines = (line for one in conditions for line in _lines(one))
  return tables.to_csv(_COLUMNS, lines, tables.short)


def _lines(one: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
  start = Condition.parse(one["condition"])._asdict()
  base = {"step": "base", "groups": one["base"], "resurgence": {}}
  for point in (base, *one["steps"]):
    for group, rate in point["groups"].items():
      row = start | {
        "seeds": one["seeds"],
        "step": point["step"],
        "group": group,
        "rate": rate["value"],
      }
      row |= {k: rate[k] for k in ("low", "high", "k", "n")}
      row["k_by_seed"] = rate["by_seed"]
      back = point["resurgence"].get(group) or {}
      row |= {f"r_{key.replace('value', 'norm')}": v for key, v in back.items()}
      row |= point.get("change", {}).get(group, {})
      free = point.get("defended", {}).get(group, {})
      row |= {f"{key}_undefended": value for key, value in free.items()}
      if group == "explicit":
        row |= {f"r_{key}": point.get(key) for key in ("median", "deviation")}
        row |= {"harmonic": point.get("harmonic"), **point.get("drift", {})}
        if point is one["steps"][-1]:
          row["area"] = one["area"]
      yield row
