"""Results that show themselves, in a notebook and in a terminal."""

import base64
import dataclasses
import html
import importlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Table:
  """A result: a table to look at, and the rows that it was made of.

  Attributes:
    title: the table's title.
    columns: the names of its columns.
    lines: its cells, line by line.
    rows: a mapping for each image or prompt, as in a run's `results.jsonl`.
    summary: the content of the run's `summary.json`.
    page: the run's page, HTML; "" where it has none.
  """

  title: str
  columns: tuple[str, ...]
  lines: tuple[tuple[str, ...], ...]
  rows: tuple[Row, ...] = ()
  summary: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  page: str = ""

  def to_pandas(self) -> Any:
    """The rows as a `pandas.DataFrame`.

    Raises:
      ImportError: pandas is not installed.
    """
    try:
      pandas = importlib.import_module("pandas")
    except ImportError as error:
      raise ImportError(
        "to_pandas: pandas is not installed; pip install pandas, or use .rows"
      ) from error
    return pandas.DataFrame([dict(row) for row in self.rows])

  def show(self) -> "Table":
    """Returns itself, for the end of a notebook's cell."""
    return self

  def __repr__(self) -> str:
    table = (self.columns, *self.lines)
    width = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    text = [
      "  ".join(f"{cell:{w}}" for cell, w in zip(line, width, strict=True))
      for line in table
    ]
    return "\n".join([self.title, *(line.rstrip() for line in text)])

  def _repr_html_(self) -> str:
    cells = [
      "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in line)
      for tag, line in (
        ("th", self.columns), *(("td", line) for line in self.lines)
      )
    ]  # fmt: skip
    body = "".join(f"<tr>{line}</tr>" for line in cells)
    head = f"<caption>{html.escape(self.title)}</caption>"
    return f"<table>{head}{body}</table>"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Grid(Table):
  """Images of prompts by several models.

  Attributes:
    images: uint8 (models, prompts, seeds, H, W, 3).
    names: the models' names, along the first axis.
    prompts: the prompts, along the second axis.
    seeds: the seeds, along the third axis.
  """

  images: UInt8[np.ndarray, "m p s H W 3"] = dataclasses.field(
    default_factory=lambda: np.zeros((0, 0, 0, 1, 1, 3), np.uint8)
  )
  names: tuple[str, ...] = ()
  prompts: tuple[str, ...] = ()
  seeds: tuple[int, ...] = ()

  def _repr_html_(self) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in self.names)
    lines = [f"<tr><th></th>{head}</tr>"]
    for p, prompt in enumerate(self.prompts):
      cells = "".join(
        f"<td>{''.join(map(_tag, by_model[p]))}</td>"
        for by_model in self.images
      )
      lines.append(f"<tr><th>{html.escape(prompt)}</th>{cells}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _tag(image: UInt8[np.ndarray, "H W 3"]) -> str:
  file = io.BytesIO()
  Image.fromarray(image).save(file, format="png")
  data = base64.b64encode(file.getvalue()).decode()
  return f'<img src="data:image/png;base64,{data}" width="96">'


def rate(one: Mapping[str, Any]) -> str:
  """An estimate in a table: its value, and its interval if it has one."""
  if one["value"] is None:
    return f"– ({one['failed']})" if one.get("failed") else "–"
  # A share needs two digits; the distances of image quality need more.
  form = ".4g" if one.get("unit") else ".2f"
  text = f"{one['value']:{form}}"
  if one.get("low") is not None:
    text += f" [{one['low']:{form}}, {one['high']:{form}}]"
  return text


def pivot(
  title: str, by_model: Mapping[str, Sequence[Mapping[str, Any]]], **more: Any
) -> Table:
  """A table of estimates: a line for each, a column for each model."""
  names = dict.fromkeys(m["name"] for ms in by_model.values() for m in ms)
  found = {
    (model, m["name"]): rate(m) for model, ms in by_model.items() for m in ms
  }
  lines = tuple(
    (name, *(found.get((model, name), "") for model in by_model))
    for name in names
  )
  return Table(title, ("", *by_model), lines, **more)
