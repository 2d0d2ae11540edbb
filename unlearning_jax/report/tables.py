"""Tables as CSV: columns and rows to text, for every experiment."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any


def to_csv(
  columns: Sequence[str],
  rows: Iterable[Mapping[str, Any]],
  text: Callable[[Any], Any] = lambda value: value,
) -> str:
  """CSV text: a line of column names, then a line for each row.

  Args:
    columns: the keys to write; a row may lack some and have others.
    rows: mappings; None is an empty cell.
    text: writes a value, as `short`; `str` by default.
  """
  file = io.StringIO()
  writer = csv.DictWriter(
    file, columns, lineterminator="\n", extrasaction="ignore"
  )
  writer.writeheader()
  writer.writerows(
    {key: text(value) for key, value in row.items()} for row in rows
  )
  return file.getvalue()


def short(value: Any) -> Any:
  """A number with six digits; a list separated by spaces."""
  if isinstance(value, list):
    return " ".join(str(short(one)) for one in value)
  return f"{value:.6g}" if isinstance(value, float) else value
