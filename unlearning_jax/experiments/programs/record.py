"""The record of compiled programs: a row a program, kept in one JSON file."""

import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from unlearning_jax import durable
from unlearning_jax.experiments.programs.build import BUILD
from unlearning_jax.experiments.programs.devices import GIB

RECORD = pathlib.Path(__file__).with_name("sd14.json")
# What tells rows apart.
KEYS = ("size", "program", "place", "mesh", "dtype", "rows", "effort")
Row = dict[str, Any]


def read(path: pathlib.Path = RECORD) -> list[Row]:
  """The rows of a record; none where there is no file.

  Raises:
    ValueError: the file is no record.
  """
  if not path.exists():
    return []
  try:
    return json.loads(path.read_text(encoding="utf-8"))["programs"]
  except (json.JSONDecodeError, KeyError, TypeError) as error:
    raise ValueError(f"{path}: no record of programs: {error}") from error


def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
  """What tells a row from others."""
  return tuple(row[name] for name in KEYS)


def add(path: pathlib.Path, row: Row):
  """Puts a row into the record, in place of an older one of its key."""
  rows = [one for one in read(path) if key(one) != key(row)] + [row]
  rows.sort(key=lambda one: tuple(map(str, key(one))))
  # A line a row: a change shows as one line.
  lines = ",\n".join(json.dumps(one) for one in rows)
  with durable.replacing(path) as file:
    file.write(f'{{"programs": [\n{lines}\n]}}\n'.encode())


@functools.cache
def shipped() -> list[Row]:
  """The rows that come with the package."""
  return read()


def held(row: Mapping[str, Any]) -> int:
  """Bytes that a program needs.

  A TPU's peak has padding that the sum lacks; a CPU's has no temporaries.
  """
  return max(row["total"], row.get("peak") or 0)


def least(row: Mapping[str, Any]) -> int:
  """Bytes that a program needs at least: on a TPU the sum can be too much."""
  return min(row["total"], row.get("peak") or row["total"])


def listed() -> list[str]:
  """The programs, and the rows that come with the package."""
  return [f"programs: {', '.join(BUILD)}", *table(shipped()).splitlines()]


def table(rows: list[Row]) -> str:
  """A line a row, in GiB of one chip."""
  head = (
    "program", "size", "dtype", "place", "mesh", "rows", "effort", "arguments",
    "temp", "total", "TFLOP", "seconds", "collectives (MiB)",
  )  # fmt: skip
  lines = [head, *map(_cells, rows)]
  wide = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return "\n".join(
    "  ".join(f"{c:{w}}" for c, w in zip(line, wide, strict=True)).rstrip()
    for line in lines
  )


def _cells(row: Row) -> tuple[str, ...]:
  names = "program", "size", "dtype", "place", "mesh", "rows", "effort"
  known = [str(row[name]) for name in names]
  if "error" in row:
    return (*known, *["-"] * 5, row["error"][:60])
  sizes = [row[n] / GIB for n in ("arguments", "temporaries", "total")]
  work = f"{row['flops'] / 1e12:.3g}" if row["flops"] else "-"
  seconds = f"{row['seconds']:.0f}" if row["seconds"] else "-"
  moved = "unknown"
  if (found := row["collectives"]) is not None:
    said = (
      f"{one['count']} {kind} ({one['bytes'] / 2**20:.1f})"
      for kind, one in sorted(found.items())
    )
    moved = ", ".join(said) or "none"
  return (
    *known, *(f"{size:.3g}" for size in sizes), work, seconds, moved,
  )  # fmt: skip
