"""Published tables as data: a line a method, with its source and version.

  load("unlearned_dm")    # its lines, numbers as numbers

The column `protocol` names the protocol that made a line's numbers; it is empty
where nobody can say. A measured number stands beside a published one only if
the same protocol made it, unchanged: see `beside`.
"""

import csv
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from unlearning_jax import protocols
from unlearning_jax.concepts import check_choice

Line = Mapping[str, Any]
_FOLDER = pathlib.Path(__file__).parent
_TEXTS = ("method", "concept", "protocol", "source", "version", "note")


def names() -> tuple[str, ...]:
  """The names of the tables."""
  return tuple(sorted(file.stem for file in _FOLDER.glob("*.csv")))


def load(name: str) -> list[dict[str, Any]]:
  """The lines of a table: texts, and numbers or None where it has none.

  Raises:
    ValueError: there is no such table.
  """
  check_choice("published", name, names())
  with open(_FOLDER / f"{name}.csv", newline="", encoding="utf-8") as file:
    return [
      {
        key: text if key in _TEXTS else float(text) if text else None
        for key, text in line.items()
      }
      for line in csv.DictReader(file)
    ]


def numbers(lines: Sequence[Line]) -> list[str]:
  """The columns that hold numbers in some line."""
  return [
    key
    for key in (lines[0] if lines else ())
    if key not in _TEXTS and any(line[key] is not None for line in lines)
  ]


def beside(signed: str, concepts: Sequence[str]) -> dict[str, list[Line]]:
  """The published lines that a run's numbers may stand beside, by table.

  Args:
    signed: name and hash of the run's protocol, as its record holds them.
    concepts: labels of what was erased, and their heads. Where a protocol has
      lines of several concepts, only those of these stay.

  Returns:
    Nothing if the protocol was changed: its numbers do not compare.
  """
  protocol, _, digest = signed.partition(" ")
  # A protocol's subject, as in udm-object/tench, changes nothing else.
  base = protocol.partition("/")[0]
  known = base in protocols.frozen() and "~" not in protocol
  if not known or protocols.find(protocol).hash != digest:
    return {}
  asked = [_plain(label) for label in concepts]
  found = {}
  for name in names():
    lines = [line for line in load(name) if line["protocol"] == base]
    if len({line["concept"] for line in lines}) > 1:
      lines = [
        line
        for line in lines
        if any(_plain(line["concept"]) in label for label in asked)
      ]
    if lines:
      found[name] = lines
  return found


def _plain(label: str) -> str:
  return label.casefold().replace("-", " ").replace("_", " ")
