"""The table of a sweep: CSV, summary and page, from the records of its cells.

Whichever worker ends last writes it, from what all have recorded.
"""

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from unlearning_jax import durable
from unlearning_jax.durable import replacing, to_json
from unlearning_jax.experiments.sweep import figures
from unlearning_jax.experiments.sweep.grid import Sweep
from unlearning_jax.experiments.sweep.keys import METHOD
from unlearning_jax.record import seal
from unlearning_jax.report import sweep as page
from unlearning_jax.report import tables

FILE, COST = "sweep.json", "cost.json"
_ENDS = ("low", "high", "k", "n", "verdict")


def plain(sweep: Sweep) -> dict[str, Any]:
  """The content of `sweep.json`."""
  found = {
    "verb": sweep.verb,
    "keys": [*sweep.grid],
    "cells": [
      {
        "id": cell.id,
        "values": dict(cell.values),
        "method": getattr(cell.given, METHOD, ""),
      }
      for cell in sweep.cells
    ],
  }
  return json.loads(to_json(found, "sweep"))


def read(file: pathlib.Path) -> dict[str, Any]:
  """What a `sweep.json` holds, as `plain` made it.

  Raises:
    ValueError: the file is damaged.
  """
  found = durable.read_json(file)
  cells = found.get("cells")
  listed = cells if isinstance(cells, list) else []
  good = isinstance(found.get("verb"), str) and isinstance(cells, list)
  for one in listed:
    good &= isinstance(one, dict) and isinstance(one.get("values"), dict)
    # The name of a folder beside the others.
    good = good and re.fullmatch(r"\w[\w.-]*", str(one.get("id"))) is not None
  if not good or not isinstance(found.get("keys"), list):
    raise ValueError(
      f"{file}: is damaged: a sweep has a verb, keys, and cells with id and "
      "values"
    )
  return found


def conclude(root: pathlib.Path) -> dict[str, Any]:
  """Writes `summary.json`, `results.csv`, `report.html`, and `DONE` at the end.

  Args:
    root: the folder of the sweep.

  Returns:
    The content of `summary.json`.

  Raises:
    ValueError: the folder holds no sweep.
  """
  file = root / FILE
  if not file.exists():
    raise ValueError(f"{root}: is no sweep's folder; it has no {FILE}")
  states: tuple[str, ...] | None = None
  document: dict[str, Any] = {}
  # Another worker that ends a cell meanwhile may write its table first.
  while states != (now := _states(root, file)):
    with durable.explaining(root):
      states, document = now, _document(root, read(file))
      texts = {
        "summary.json": to_json(document, "summary", indent=2),
        "results.csv": to_csv(document),
        "report.html": page.html(document, root),
      }
    for name, text in texts.items():
      with replacing(root / name) as stream:
        stream.write(text.encode())
    if all(one["state"] == "done" for one in document["cells"]):
      (root / seal.NAME).touch()
    else:
      (root / seal.NAME).unlink(missing_ok=True)
  return document


def _states(root: pathlib.Path, file: pathlib.Path) -> tuple[str, ...]:
  sweep = read(file)
  return tuple(
    " ".join((one["id"], *_state(root / "cells" / one["id"])))
    for one in sweep["cells"]
  )


def _state(folder: pathlib.Path) -> tuple[str, str]:
  """What became of a cell, and why it failed."""
  if (folder / seal.NAME).exists():
    return "done", ""
  text = durable.read_text(folder / "failed.txt")
  if text is None:
    return "not run", ""
  lines = text.strip().splitlines()
  return "failed", lines[-1] if lines else "no reason was kept"


def _document(root: pathlib.Path, sweep: Mapping[str, Any]) -> dict[str, Any]:
  """The content of `summary.json`, which the page shows."""
  found = []
  for one in sweep["cells"]:
    folder = root / "cells" / one["id"]
    state, error = _state(folder)
    cell = {**one, "state": state, "error": error, "figures": {}}
    if state == "done":
      with durable.explaining(folder):
        cell["figures"] = figures.read(sweep["verb"], folder)
      cell["seconds"] = _seconds(folder)
    found.append(cell)
  names = ", ".join(sweep["keys"])
  done = [one["id"] for one in found if one["state"] == "done"]
  made = root / "cells" / (done or [""])[0] / "provenance.json"
  return {
    "title": f"Sweep of {sweep['verb']} over {names}",
    "verb": sweep["verb"],
    "keys": sweep["keys"],
    "cells": found,
    "provenance": durable.read_json(made) if made.is_file() else {},
  }


def _seconds(folder: pathlib.Path) -> float | None:
  """How long a cell took; None where its worker died before it said so."""
  text = durable.read_text(folder / COST)
  if text is None:
    return None
  found = durable.from_json(text, f"{folder / COST}").get("seconds")
  if not isinstance(found, int | float):
    raise ValueError(f"{folder / COST}: seconds={found!r}; allowed: a number")
  return found


def first_seconds(root: pathlib.Path, ids: Sequence[str]) -> float | None:
  """How long a cell took; None where none has ended.

  It is the first one that ended in a single start, or else the first one.
  """
  folders = [root / "cells" / one for one in ids]
  ended = [
    one
    for one in folders
    if (one / COST).exists() and (one / seal.NAME).exists()
  ]

  def order(one: pathlib.Path) -> tuple[bool, float]:
    # Of a cell that was killed, the seconds of the last start alone are known.
    starts = [*(root / "leases").glob(f"{one.name}.*")]
    return len(starts) > 1, (one / seal.NAME).stat().st_mtime

  ended.sort(key=order)
  return _seconds(ended[0]) if ended else None


def to_csv(document: Mapping[str, Any]) -> str:
  """A line of CSV for each cell; the same for every order and worker."""
  keys, lines = document["keys"], []
  names = dict.fromkeys(n for one in document["cells"] for n in one["figures"])
  columns = ["id", *keys, "state"]
  for name in names:
    known = [one["figures"].get(name, {}) for one in document["cells"]]
    ends = [end for end in _ENDS if any(end in one for one in known)]
    columns += [name, *(f"{name} {end}" for end in ends)]
  for cell in document["cells"]:
    line = {"id": cell["id"], "state": cell["state"], "error": cell["error"]}
    line |= cell["values"]
    for name, one in cell["figures"].items():
      line[name] = one["value"]
      line |= {f"{name} {end}": one[end] for end in _ENDS if end in one}
    lines.append(line)
  return tables.to_csv([*columns, "error"], lines)


def lines(document: Mapping[str, Any]) -> list[list[str]]:
  """The table as texts: the heads, then a line for each cell."""
  shown = page.shown(document)
  found = [["id", *document["keys"], "state", *shown]]
  for cell in document["cells"]:
    known = (cell["figures"].get(name) for name in shown)
    found.append(
      [
        cell["id"],
        *(str(cell["values"][key]) for key in document["keys"]),
        cell["state"],
        *(f"{one['value']:.3g}" if one else "" for one in known),
      ]
    )
  return found


def written(root: pathlib.Path) -> dict[str, Any]:
  """The summary that `conclude` has written into a folder."""
  return durable.read_json(root / "summary.json")


def printed(root: pathlib.Path) -> str:
  """The table of the sweep in a folder, for the terminal."""
  found = lines(written(root))
  wide = [max(map(len, column)) for column in zip(*found, strict=True)]
  return "\n".join(
    "  ".join(f"{t:{w}}" for t, w in zip(line, wide, strict=True)).rstrip()
    for line in found
  )
