"""What the record of the probe's calibration counts, of rows that are drawn.

`probe_calibration.py` draws and probes the rows.

  python benchmarks/probe_record.py

prints the tables of `docs/probe.md`.
"""

import dataclasses
import json
import pathlib
import sys
from typing import Any

from unlearning_jax.probe import LIMITS
from unlearning_jax.statistics import wilson

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from probe_edits import HALVES, specs  # noqa: E402

FILE = pathlib.Path(__file__).parent / "results/probe_calibration.json"
STILL_THERE, DAMAGE = 0.5, 0.3
# What is drawn once more: shares seen, and shares lost.
NEAR_SEEN, NEAR_LOST = (0.15, 0.85), (0.15, 0.5)
# Clear cases, of which the record counts too.
CLEAR_FAILED, CLEAR_GOOD = (0.75, 0.5), (0.25, 0.15)
# Limits whose counts the record shows too.
CURVE = {
  "left": (0.48, 0.52, 0.564, 0.61, 0.65),
  "moved": (0.30, 0.32, 0.344, 0.37),
}
# Halves as the page calls them.
CALLED = {
  "every": "all", "fresh": "fresh", "blind": "blind",
  "shown": "other classes", "chosen": "chosen classes",
}  # fmt: skip
Row = dict[str, Any]


def near(seen: float, lost: float) -> tuple[bool, bool]:
  """Whether luck may have put a share seen, a share lost, beyond its limit."""
  if seen > NEAR_SEEN[1] or lost > NEAR_LOST[1]:
    return False, False
  return seen >= NEAR_SEEN[0], lost >= NEAR_LOST[0]


def failed(seen: float, lost: float) -> bool:
  """Whether an edit has failed that leaves and loses these shares."""
  return seen > STILL_THERE or lost > DAMAGE


def clear(seen: float, lost: float) -> bool:
  """Whether an edit has clearly failed, or is clearly good."""
  good = seen <= CLEAR_GOOD[0] and lost <= CLEAR_GOOD[1]
  return seen > CLEAR_FAILED[0] or lost > CLEAR_FAILED[1] or good


def counts(rows: list[Row]) -> dict[str, int]:
  """Failed and good edits, and how many of each were flagged."""
  found = {}
  for name, has_failed in (("failed", True), ("good", False)):
    some = [row for row in rows if row["failed"] == has_failed]
    found[name] = len(some)
    found[f"{name}_flagged"] = sum(row["verdict"] != "ok" for row in some)
  return found


def intervals(rows: list[Row]) -> dict[str, Any]:
  """`counts`, with Wilson's 95 % interval of each share that is flagged."""
  found = counts(rows)
  ends = {
    f"{name}_interval": [
      round(end, 4) for end in wilson(found[f"{name}_flagged"], found[name])
    ]
    for name in ("failed", "good")
  }
  return found | ends


def curve(rows: list[Row]) -> list[Row]:
  """What other limits would flag of the edits that states measure."""
  held = [row for row in rows if row["instrument"] == "states"]
  found = []
  for left in CURVE["left"]:
    for moved in CURVE["moved"]:
      said = [row["left"] > left or row["unrelated"] > moved for row in held]
      verdicts = [
        row | {"verdict": "flagged" if flagged else "ok"}
        for row, flagged in zip(held, said, strict=True)
      ]
      found.append({"left": left, "moved": moved, **counts(verdicts)})
  return found


def together(old: list[Row], new: list[Row]) -> list[Row]:
  """Rows of both, in the order of `specs`; a new one replaces an old one."""
  rows = {row["id"]: row for row in (*old, *new)}
  return [rows[spec.id] for spec in specs() if spec.id in rows]


def record(what: str, rows: list[Row]) -> dict[str, Any]:
  """The record: all edits, every half, clear cases, every row."""
  found: dict[str, Any] = {
    "what": what,
    "limits": {k: dataclasses.asdict(v) for k, v in LIMITS.items()},
  }
  halves = {
    half: [row for row in rows if row["half"] == half] for half in HALVES
  }
  for half, some in {"every": rows, **halves}.items():
    by_method = {
      method: counts([row for row in some if row["method"] == method])
      for method in sorted({row["method"] for row in some})
    }
    sure = [row for row in some if clear(row["shown"], row["lost"])]
    found[half] = {
      "all": intervals(some), "clear": intervals(sure), "methods": by_method,
      "curve": curve(some),
    }  # fmt: skip
  return found | {"rows": rows}


def share(one: dict[str, Any], name: str) -> str:
  """How many of the edits `name` were flagged, with the interval if known."""
  said = f"{one[f'{name}_flagged']} of {one[name]}"
  if f"{name}_interval" not in one:
    return said
  low, high = (100 * end for end in one[f"{name}_interval"])
  return f"{said} ({low:.0f} to {high:.0f} %)"


def table(*rows: list[str]) -> str:
  """Markdown of a head and rows."""
  head, *lines = (f"| {' | '.join(row)} |" for row in rows)
  return "\n".join([head, "|---" * len(rows[0]) + "|", *lines])


def tables(found: dict[str, Any]) -> list[str]:
  """The tables of `docs/probe.md`: halves, methods, other limits."""
  kinds = ("failed", "good")
  flagged = [f"{kind} edits flagged" for kind in kinds]
  halves = [
    [called + said, *(share(found[half][part], kind) for kind in kinds)]
    for half, called in CALLED.items()
    for part, said in (("all", ""), ("clear", ", clear cases"))
  ]
  methods = [
    [f"`{method}`", *(share(one, kind) for kind in kinds)]
    for method, one in found["every"]["methods"].items()
  ]
  names, held = list(CALLED)[:0:-1], found["limits"]["states"]
  limits = [
    [f"{ones[0]['left']}", f"{ones[0]['moved']}"]
    + [", ".join(share(one, kind) for kind in kinds) for one in ones]
    for ones in zip(*(found[half]["curve"] for half in names), strict=True)
    if any(ones[0][key] == limit for key, limit in held.items())
  ]
  return [
    table(["edits", *flagged], *halves),
    table(["method, all edits", *flagged], *methods),
    table(["left", "moved", *(CALLED[half] for half in names)], *limits),
  ]


if __name__ == "__main__":
  print("\n\n".join(tables(json.loads(FILE.read_text()))))
