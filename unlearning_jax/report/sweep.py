"""The page of a sweep: what was gained against what was lost, and every cell.

The document, also in `summary.json`:

  title, verb; keys: the keys of the grid.
  cells: [{id, values: {key: value}, method, state: done, failed or not run,
    error, seconds, figures: {name: {value, low, high, k, n, verdict}}}].
  provenance: {runs: [...]}, one cell's.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from unlearning_jax.report import colors, sections
from unlearning_jax.report.coordinates import Axis, Line, front, parallel, plane
from unlearning_jax.report.page import fill, subjects

Document = Mapping[str, Any]
# The two ends of the plane; more is better for both.
ENDS = ("erased", "kept")
_MOST_AXES = 8


def html(document: Document, root: pathlib.Path) -> str:
  """The page, for `report.html`.

  Args:
    document: see above.
    root: the folder of the sweep; cells that are done link to their pages.
  """
  cells = document["cells"]
  done = [one for one in cells if one["state"] == "done"]
  own = colors.classes(_method(document, one) for one in cells)
  names = shown(document)
  best = front({one["id"]: point for one in done if (point := _ends(one))})
  made = document.get("provenance", {})
  return fill(
    "sweep.html",
    document["title"],
    subjects([], "", sections.fingerprint(made), []),
    sweep=document,
    counts={
      state: sum(one["state"] == state for one in cells)
      for state in ("done", "failed", "not run")
    },
    symbols={},
    colors=own,
    methods={one["id"]: _method(document, one) for one in cells},
    names=names,
    best=best,
    links={
      one["id"]: f"cells/{one['id']}/report.html"
      for one in done
      if (root / "cells" / one["id"] / "report.html").is_file()
    },
    plane=_plane(document, done, own, best),
    parallel=_parallel(document, done, names, own),
    number=_number,
    interval=_interval,
    seconds=[one["seconds"] for one in done if one.get("seconds")],
    made=sections.provenance(made),
  )


def shown(document: Document) -> list[str]:
  """The figures of the table: erased and kept first, then the others."""
  found = dict.fromkeys(n for one in document["cells"] for n in one["figures"])
  return [
    *(n for n in ENDS if n in found),
    *(n for n in found if n not in ENDS),
  ]


def _method(document: Document, cell: Mapping[str, Any]) -> str:
  """Whose color a cell has."""
  return str(cell["values"].get("method") or cell["method"] or document["verb"])


def _value(value: Any) -> Any:
  """A value of a setting; of None the axis says that it is the default."""
  return "default" if value is None else value


def _said(cell: Mapping[str, Any]) -> str:
  return ", ".join(f"{key} {value}" for key, value in cell["values"].items())


def _ends(cell: Mapping[str, Any]) -> tuple[float, float] | None:
  """What a cell erased and kept; None where either was not measured."""
  x, y = (cell["figures"].get(name) for name in ENDS)
  return (x["value"], y["value"]) if x and y else None


def _number(one: Mapping[str, Any]) -> str:
  return sections.plain(float(one["value"]))


def _interval(one: Mapping[str, Any]) -> str:
  if one.get("low") is None:
    return ""
  return f"[{one['low']:.2f}, {one['high']:.2f}]"


def _plane(
  document: Document,
  done: Sequence[Mapping[str, Any]],
  own: Mapping[str, str],
  best: Sequence[str],
) -> Any:
  """Erased against kept; None where no cell has both."""
  points = {one["id"]: point for one in done if (point := _ends(one))}
  if not points:
    return None
  said = {one["id"]: _said(one) for one in done}
  classes = {one["id"]: own[_method(document, one)] for one in done}
  return plane(ENDS, points, said, classes, best)


def _parallel(
  document: Document,
  done: Sequence[Mapping[str, Any]],
  names: Sequence[str],
  own: Mapping[str, str],
) -> Any:
  """A line for each cell through its values and figures; None without one."""
  if not done:
    return None
  axes = [
    Axis(key, [_value(one["values"][key]) for one in done])
    for key in document["keys"]
  ]
  for name in names[: max(_MOST_AXES - len(axes), 2)]:
    values = [one["figures"].get(name, {}).get("value") for one in done]
    axes.append(Axis(name, values))
  lines = [Line(_said(one), own[_method(document, one)]) for one in done]
  return parallel(axes, lines)
