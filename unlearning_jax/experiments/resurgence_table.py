"""What a resurgence study leaves behind: summary, CSV, report."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from unlearning_jax.experiments import resurgence_plan
from unlearning_jax.experiments.resurgence_plan import Cell
from unlearning_jax.metrics import study
from unlearning_jax.record.workdir import Workdir
from unlearning_jax.report import resurgence as page

_COLUMNS = (
  "method", "concept", "tuning_set", "algorithm", "defence", "seeds", "step",
  "group", "rate", "low", "high", "k", "n", "r_norm", "r_low", "r_high",
  "r_median", "r_deviation", "k_by_seed", "lost", "gained", "p", "p_by_seed",
  "lost_undefended", "gained_undefended", "p_undefended", "harmonic", "area",
  *study.EARLY,
)  # fmt: skip
_PREDICTOR = ("among", "name", "when", "value", "low", "high", "n")


def records(work: Any, cells: Sequence[Cell]) -> list[dict[str, Any]]:
  """Every cell that was measured to its last step."""
  rows = {row["id"]: row for row in work.run.rows()}
  found = []
  for cell in cells:
    steps = work.config.algorithms[cell.algorithm].checkpoints
    if f"{cell.id}@{steps[-1]}" not in rows:
      continue
    points = {step: rows[f"{cell.id}@{step}"] for step in steps}
    base = f"base/{cell.concept}/{cell.seed}"
    erased = f"erased/{cell.erasure}"
    prompts: dict[str, list[str]] = {}
    listed = [*work.rows_of(cell.concept, cell.seed), *work.tuned_rows_of(cell)]
    for row in listed:
      prompts.setdefault(row["group"], []).append(row["prompt"])
    before, gone = (
      rows[key]["right"] | rows[f"{key}/{cell.tuning_set}"]["right"]
      for key in (base, erased)
    )
    known = rows[f"{cell.id}@0"]["predictors"]
    found.append(
      study.record(
        cell.condition,
        cell.seed,
        before,
        gone,
        points,
        prompts,
        known,
        resurgence_plan.kind(work.config, cell),
      )  # fmt: skip
    )
  return found


def document(work: Any, cells: Sequence[Cell]) -> dict[str, Any]:
  """What `report.resurgence` renders."""
  known = records(work, cells)
  failed = [row for row in work.run.rows() if "failed" in row]
  return {
    "title": work.config.title,
    "threshold": work.config.revival,
    "cells": {"planned": len(cells), "measured": len(known)},
    "failed": [{"cell": r["id"][:-1], "why": r["failed"]} for r in failed],
    "conditions": study.summarize(known, work.config.revival),
    "predictors": study.predictors(known),
  }


def write(run: Workdir, work: Any, cells: Sequence[Cell]):
  """Writes `summary.json`, two CSVs and `report.html`, and prints."""
  found = document(work, cells)
  run.save_summary(found)
  run.write("results.csv", table(found["conditions"]))
  run.write("predictors.csv", _lines(_PREDICTOR, found["predictors"]))
  provenance = json.loads((run.path / "provenance.json").read_text())
  run.write("report.html", page.render(found, provenance))
  print(printed(found))
  print(f"report: {run.path / 'report.html'}")


def table(conditions: Sequence[Mapping[str, Any]]) -> str:
  """Every rate at every step as a line of CSV; see docs/resurgence.md."""
  return _lines(_COLUMNS, (row for one in conditions for row in _rows(one)))


def _rows(one: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
  start = dict(zip(_COLUMNS, one["condition"].split("/"), strict=False))
  start["seeds"] = one["seeds"]
  base = {"step": "base", "groups": one["base"], "resurgence": {}}
  for point in (base, *one["steps"]):
    for group, rate in point["groups"].items():
      row = start | {
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


def _lines(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
  file = io.StringIO()
  writer = csv.DictWriter(
    file, columns, lineterminator="\n", extrasaction="ignore"
  )
  writer.writeheader()
  for row in rows:
    writer.writerow({key: _text(value) for key, value in row.items()})
  return file.getvalue()


def _text(value: Any) -> Any:
  """A cell of a CSV; of several seeds one value after the other."""
  if isinstance(value, list):
    return " ".join(str(_text(one)) for one in value)
  return f"{value:.6g}" if isinstance(value, float) else value


def printed(found: Mapping[str, Any]) -> str:
  """The summary for the terminal."""
  lines = [f"{'':42}{'erased':>8}  R_norm by name, then steps"]
  for one in found["conditions"]:
    first, *rest = one["steps"]
    cells = [f"{first['groups']['explicit']['value']:8.2f}"]
    for point in rest:
      back = point["resurgence"]["explicit"]
      text = "undefined"
      if back:
        text = "{value:.2f} [{low:.2f}, {high:.2f}]".format(**back)
      cells.append(f"{point['step']:>5}: {text}")
    lines.append(f"{one['condition']:42}" + "".join(cells))
  counts = found["cells"]
  lines.append(
    f"{counts['measured']} of {counts['planned']} cells measured, "
    f"{len(found['failed'])} failed"
  )
  lines += [f"failed: {row['cell']}: {row['why']}" for row in found["failed"]]
  return "\n".join(lines)
