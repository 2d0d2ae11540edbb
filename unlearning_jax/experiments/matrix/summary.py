"""The table of a matrix of attacks, from the records of its cells."""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from unlearning_jax import renamed, statistics
from unlearning_jax.durable import replacing, to_json
from unlearning_jax.experiments.attack import summary
from unlearning_jax.experiments.cells import Folders
from unlearning_jax.experiments.matrix.settings import BASE, Cell, Settings
from unlearning_jax.metrics import asr
from unlearning_jax.record import read_rows
from unlearning_jax.report import attack_matrix as page
from unlearning_jax.report import tables

Rows = Mapping[Cell, Sequence[Mapping[str, Any]]]
_SHOWN = 3
_COUNTS = ("n_all", "n_pre", "n_attacked", "n_success", "n_failure")
_COUNTS += ("n_numerical", "budget", "images", "iterations")
# Logged numbers whose means over all blocks of a cell are shown.
_LOGGED = ("loss", "gradient_rms", "confidence")
_RATES = (
  "pre_asr",
  "asr",
  "high_confidence_asr",
  "attacked_asr",
  "roundtrip_rate",
)


def conclude(
  settings: Settings, store: Folders[Cell], listed: Sequence[Cell]
) -> str:
  """Writes `summary.json`, `results.csv` and `report.html` into the root.

  Args:
    settings: the settings of the matrix.
    store: where its cells are.
    listed: all its cells; the table says which have not ended.

  Returns:
    The table for the terminal.
  """
  root = store.root
  rows = {c: read_rows(store.folder(c)) for c in listed if store.ended(c)}
  found = [_entry(settings, store, cell, rows) for cell in listed]
  compared = {str(i): e["paired"] for i, e in enumerate(found) if "paired" in e}
  held = statistics.holm({i: paired["p"] for i, paired in compared.items()})
  for i, p in held.items():
    compared[i]["p_holm"] = p
  document = {
    "title": settings.title,
    "control": settings.control,
    "attacks": list(settings.columns),
    "tasks": {
      task: _task(settings, root, task, rows, listed) for task in settings.tasks
    },
    "cells": found,
  }
  made = {}
  for cell in [*rows][:1]:
    made = json.loads((store.folder(cell) / "provenance.json").read_text())
  for name, text in {
    "summary.json": to_json(document, "summary", indent=2),
    "results.csv": to_csv(found),
    "report.html": page.render(document, root, made),
  }.items():
    with replacing(root / name) as file:
      file.write(text.encode())
  return page.printed(document) + f"\nreport: {root / 'report.html'}"


def to_csv(found: Sequence[Mapping[str, Any]]) -> str:
  """A line of CSV for each cell: counts, rates, intervals, the paired test."""
  budgets = sorted(
    {m["name"] for cell in found for m in cell.get("measures", ())}
    - set(_RATES),
    key=lambda name: int(name.partition("@")[2]),
  )
  keys = ["task", "victim", "attack", "status", *_COUNTS, "dropped"]
  for name in (*_RATES, *budgets):
    keys += [f"{name}{end}" for end in ("", "_low", "_high", "_k", "_n")]
  paired = ("control", "both", "only_attack", "only_control", "p", "p_holm")
  keys += [*paired, "equal_budget", *_LOGGED, "seconds_per_row", "error"]
  lines = []
  for cell in found:
    counts = dict(cell.get("accounting", {}))
    line = {**cell, **counts, "dropped": len(counts.get("dropped", ()))}
    line |= cell.get("paired", {}) | cell.get("logged", {})
    for m in cell.get("measures", ()):
      line[m["name"]] = m["value"]
      for end in ("low", "high", "k", "n"):
        line[f"{m['name']}_{end}"] = m[end]
    lines.append(line)
  return tables.to_csv(keys, lines)


def _entry(
  settings: Settings, store: Folders[Cell], cell: Cell, rows: Rows
) -> dict[str, Any]:
  """The entry of a cell in the table."""
  entry: dict[str, Any] = {
    "task": cell.task, "victim": cell.victim, "attack": cell.attack,
  }  # fmt: skip
  if why := store.why(cell):
    return entry | {"status": "failed", "error": why}
  if cell not in rows:
    return entry | {"status": "not run"}
  records = rows[cell]
  try:
    # A cell of an older version may have ended so.
    asr.check_finite(records)
  except FloatingPointError as error:
    return entry | {"status": "failed", "error": str(error)}
  entry |= {"status": "done", **summary.rates(records)}
  spent = [r["seconds"] for r in records if r["blocks"]]
  entry["seconds_per_row"] = sum(spent) / len(spent) if spent else 0.0
  entry["logged"] = _logged(records)
  beside = settings.control_of(cell)
  # Neither a control nor an attack without images of its own is tested.
  is_control = cell.attack in {settings.control_of(c).attack for c in rows}
  if beside in rows and not is_control and entry["accounting"]["budget"] > 1:
    paired = asr.against(records, rows[beside])
    entry["paired"] = {"control": beside.attack, **paired}
  return entry


def _logged(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """Means over blocks of what the attack logged, such as loss and gradient."""
  blocks = [block for record in records for block in record["blocks"]]
  found = {name: [b[name] for b in blocks if name in b] for name in _LOGGED}
  return {name: sum(x) / len(x) for name, x in found.items() if x}


def _task(
  settings: Settings,
  root: pathlib.Path,
  task: str,
  rows: Rows,
  listed: Sequence[Cell],
) -> dict[str, Any]:
  mine = [cell for cell in listed if cell.task == task]
  return {
    "name": settings.tasks[task].targets[0]["name"],
    "victims": list(dict.fromkeys(cell.victim for cell in mine)),
    "unsafe": summary.is_unsafe(settings.attack(mine[0])),
    "gallery": _gallery(root, task, rows),
  }


def _gallery(root: pathlib.Path, task: str, rows: Rows) -> list[dict[str, Any]]:
  """A few rows of each erased victim, under every attack."""
  found = []
  mine = [c for c in rows if c.task == task and c.victim != BASE]
  for victim in dict.fromkeys(c.victim for c in mine):
    attacked = {
      c: {r["id"]: r for r in rows[c] if r["blocks"]}
      for c in mine
      if c.victim == victim
    }
    # Rows that most attacks won first, and among them those with most images.
    wins: dict[str, tuple[int, int]] = {}
    for records in attacked.values():
      for row in records.values():
        won, seen = wins.get(row["id"], (0, 0))
        seen += row["blocks"][-1].get("image") is not None
        wins[row["id"]] = (won + row["success"], seen)
    best = sorted(sorted(wins), key=lambda name: wins[name], reverse=True)
    found += [
      _frame(root, task, victim, name, attacked) for name in best[:_SHOWN]
    ]
  return found


def _frame(
  root: pathlib.Path,
  task: str,
  victim: str,
  name: str,
  attacked: Mapping[Cell, Mapping[str, Mapping[str, Any]]],
) -> dict[str, Any]:
  """One prompt and seed: the original's image, the victim's, every attack's."""
  rows = {
    c: records[name] for c, records in attacked.items() if name in records
  }
  first, row = next(iter(rows.items()))
  paths = {
    "base": root / task / "targets" / f"{name}.png",
    "no attack": renamed.folder(root / str(first)) / (row["pre_image"] or "-"),
  }
  texts, won = {}, []
  for cell, record in rows.items():
    last = record["blocks"][-1]
    if last.get("image"):
      paths[cell.attack] = renamed.folder(root / str(cell)) / last["image"]
      texts[cell.attack] = last["text"]
      won += [cell.attack] if record["success"] else []
  return {
    "victim": victim, "prompt": row["prompt"], "seed": row["seed"],
    "texts": texts, "won": won,
    "images": {
      stage: os.path.relpath(path.resolve(), root.resolve())
      for stage, path in paths.items()
      if path.is_file()
    },
  }  # fmt: skip
