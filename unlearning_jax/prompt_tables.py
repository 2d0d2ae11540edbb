"""Tables of prompts: CSV files, read as papers publish them.

  table = read("unsafe-prompts4703.csv")
  table.prompts     # the rows that can be drawn
  table.notes       # what was left out or assumed, and why

Published tables differ in the names of their columns, and some lack what others
have. A row that has no prompt is left out. A number that a table does not have
is assumed. Each of these is a sentence in `notes`, which a run prints once and
keeps. What could be read in two ways is refused.
"""

import collections
import csv
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from unlearning_jax import durable

# What is read -> the columns that may hold it; the first that is there counts.
COLUMNS: Mapping[str, tuple[str, ...]] = {
  # The last two hold the texts that Ring-A-Bell and MMA-Diffusion found.
  "prompt": ("prompt", "caption", "text", "sensitive prompt", "adv_prompt"),
  "seed": ("evaluation_seed", "sd_seed", "seed"),
  "guidance": ("evaluation_guidance", "sd_guidance_scale", "guidance_scale"),
  # An unnamed column is the index that pandas writes.
  "number": ("case_number", "case_num", "image_id", "", "Unnamed: 0"),
  "width": ("sd_image_width", "image_width"),
  "height": ("sd_image_height", "image_height"),
}
_MOST = 2**32
# How many rows a note lists.
_LISTED = 5


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A row of a prompt table.

  Attributes:
    case_number: the row's own number, unique in its table, in [0, 2**32).
    prompt: the text to draw.
    seed: of the row's initial noise, in [0, 2**32).
    guidance: classifier-free guidance scale, or None if the row has none.
    size: height and width of the row's image, or None if it has none.
    labels: the other columns (class, artist, ...), as text.
  """

  case_number: int
  prompt: str
  seed: int
  guidance: float | None = None
  size: tuple[int, int] | None = None
  labels: Mapping[str, str] = dataclasses.field(
    default_factory=dict, compare=False
  )


@dataclasses.dataclass(frozen=True)
class PromptTable:
  """A table that was read.

  Attributes:
    prompts: the rows that can be drawn, in the order of the file.
    notes: sentences about what was left out or assumed.
    size: rows of the file, with those that were left out.
  """

  prompts: tuple[Prompt, ...]
  notes: tuple[str, ...]
  size: int

  def sha256(self, labels: Sequence[str] = ()) -> str:
    """A hash of what is drawn, however the file spells or numbers it.

    Args:
      labels: columns whose labels count too, as they decide what is measured.
    """
    rows = [
      [row.prompt, row.seed, row.guidance, row.size]
      + [row.labels.get(label, "").strip() for label in labels]
      for row in self.prompts
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def read(path: str | os.PathLike[str]) -> PromptTable:
  """Reads a CSV of prompts.

  `COLUMNS` has the names of the columns that are read; every other column
  becomes a label.

  Raises:
    ValueError: it is a folder; no column of prompts; a number is not a
      plain integer (a float may have rounded a seed), negative or too large; a
      row has the wrong length; no row has a prompt. The message names file, row
      and column.
  """
  columns, rows = _read(path)
  taken = {
    what: next((name for name in names if name in columns), None)
    for what, names in COLUMNS.items()
  }
  if taken["prompt"] is None:
    raise ValueError(
      f"{path}: no column 'prompt'; found: "
      f"{', '.join(columns)[:999] or 'none'}. "
      "Rename the column of the texts to 'prompt'"
    )
  for number, row in enumerate(rows, 1):
    if None in row or None in row.values():
      raise ValueError(
        f"{path}, row {number}: more or fewer fields than the {len(columns)} "
        "columns. A text that holds a comma stands in double quotes"
      )
  notes = _renamed(taken)
  numbers, told = _numbers(path, rows, taken["number"])
  reader = _Reader(path, taken, numbers)
  prompts = [reader.prompt(i, row) for i, row in enumerate(rows)]
  kept = tuple(one for one in prompts if one is not None)
  if not kept:
    raise ValueError(f"{path}: no prompts")
  return PromptTable(kept, (*notes, *told, *reader.notes()), len(rows))


def _read(
  path: str | os.PathLike[str],
) -> tuple[tuple[str, ...], list[dict[Any, Any]]]:
  if os.path.isdir(path):
    tables = sorted(n for n in os.listdir(path) if n.endswith(".csv"))
    named = ", ".join(os.path.join(path, n) for n in tables)
    raise ValueError(
      f"{path}: is a folder; name one table of prompts: "
      f"{named or 'it holds no .csv'}"
    )
  if os.path.exists(path):
    durable.check_plain(path)
  # utf-8-sig, because spreadsheets write a byte-order mark; newline="", because
  # a quoted prompt may hold line breaks.
  try:
    with open(path, newline="", encoding="utf-8-sig") as file:
      reader = csv.DictReader(file, strict=True)
      columns, rows = tuple(reader.fieldnames or ()), list(reader)
  except FileNotFoundError as error:
    raise ValueError(
      f"{path}: there is no such file; name a CSV of prompts: --prompts= of an "
      "evaluation, --config.prompt_table= of an attack"
    ) from error
  except (csv.Error, UnicodeDecodeError, OSError) as error:
    raise ValueError(f"{path}: no CSV in UTF-8: {error}") from error
  twice = [name for name, n in collections.Counter(columns).items() if n > 1]
  if twice:
    raise ValueError(f"{path}: a column name is repeated: {twice[0][:80]!r}")
  return columns, rows


def _renamed(taken: Mapping[str, str | None]) -> list[str]:
  """Sentences about columns that stand in for the usual ones."""
  found = []
  for what in ("prompt", "seed", "guidance"):
    usual, name = COLUMNS[what][0], taken[what]
    if name not in (None, usual):
      found.append(f"There is no column {usual!r}: {name!r} is taken for it.")
  return found


def _numbers(
  path: str | os.PathLike[str],
  rows: Sequence[Mapping[str, str]],
  column: str | None,
) -> tuple[Sequence[int], list[str]]:
  """The number of each row, and a sentence where they had to be assumed."""
  place = "rows are numbered by their place in the file, from 0."
  if column is None:
    return range(len(rows)), [f"There is no column 'case_number': {place}"]
  what = column or "(the unnamed one)"
  found = [
    _natural(row[column], f"{path}, row {number}: {what}")
    for number, row in enumerate(rows, 1)
  ]
  twice = len(found) - len(set(found))
  if twice:
    return range(len(rows)), [
      f"Column {what!r} holds {twice} numbers that came before: {place}"
    ]
  if column in COLUMNS["number"][:2]:
    return found, []
  return found, [f"There is no column 'case_number': {what!r} is taken for it."]


class _Reader:
  """Reads rows, and remembers which of them lack something."""

  def __init__(
    self,
    path: str | os.PathLike[str],
    taken: Mapping[str, str | None],
    numbers: Sequence[int],
  ):
    self._path, self._taken, self._numbers = path, taken, numbers
    self._lacking: dict[str, list[int]] = {}

  def prompt(self, place: int, row: Mapping[str, str]) -> Prompt | None:
    """The row as a prompt; None for a row without text."""
    number = self._numbers[place]
    where = f"{self._path}, row {place + 1}"
    text = row[self._taken["prompt"] or ""]
    # "NaN" is what a table program writes for nothing.
    if not text.strip() or text.strip().lower() == "nan":
      return self._lacks("prompt", number)
    seed = self._value(row, "seed", where, number, _natural)
    guidance = self._value(row, "guidance", where, number, _real)
    if guidance is not None and guidance <= 1:
      self._lacks("guided", number)
    sides = [
      self._value(row, key, where, number, _natural)
      for key in ("height", "width")
    ]
    read = set(self._taken.values()) - {None}
    return Prompt(
      case_number=number,
      prompt=text,
      seed=number if seed is None else seed,
      guidance=guidance,
      size=None if None in sides else (sides[0], sides[1]),
      labels={k: v for k, v in row.items() if k and k not in read},
    )

  def notes(self) -> list[str]:
    """A sentence for each thing that rows lack."""
    said = {
      "prompt": "without a prompt: left out, not drawn and not counted.",
      "seed": "without a seed: the row's own number is its seed.",
      "guidance": "without a guidance scale: the run's own scale is taken.",
      "guided": "with a guidance scale of 1 or less: drawn from the prompt's "
      "prediction alone, as the released code does.",
    }
    return [
      f"{_rows(self._lacking[key])} {text}"
      for key, text in said.items()
      if key in self._lacking
    ]

  def _value(
    self,
    row: Mapping[str, str],
    what: str,
    where: str,
    number: int,
    parse: Callable[[str, str], Any],
  ) -> Any:
    column = self._taken[what]
    if column is None or not row[column].strip():
      # A table without guidance is the rule; a blank among others is not.
      if column is not None or what == "seed":
        self._lacks(what, number)
      return None
    return parse(row[column], f"{where}: {column}")

  def _lacks(self, what: str, number: int) -> None:
    self._lacking.setdefault(what, []).append(number)


def _rows(numbers: Iterable[int]) -> str:
  """`2 rows (case_number 4, 7)`."""
  found = [*numbers]
  shown = ", ".join(map(str, found[:_LISTED]))
  more = ", ..." if len(found) > _LISTED else ""
  count = "1 row" if len(found) == 1 else f"{len(found):,} rows"
  return f"{count} (case_number {shown}{more})"


def _natural(text: str, what: str) -> int:
  # isdecimal alone accepts other scripts' digits, which int() reads too.
  text = text.strip()
  plain = text.isascii() and text.isdecimal()
  # Python refuses to read a number of thousands of digits.
  if not plain or len(text.lstrip("0")) > 10 or int(text) >= _MOST:
    raise ValueError(
      f"{what}={text[:80]!r}; allowed: whole numbers 0 to {_MOST - 1}"
    )
  return int(text)


def _real(text: str, what: str) -> float:
  try:
    value = float(text)
  except ValueError as error:
    raise ValueError(f"{what}={text[:80]!r} is not a number") from error
  if not math.isfinite(value):
    raise ValueError(f"{what}={text!r} is not finite")
  return value
