"""The page's section that puts measured rows beside published ones."""

from typing import Any

from unlearning_jax.report import published
from unlearning_jax.report.document import Document
from unlearning_jax.report.markup import Html, element, join, table
from unlearning_jax.report.sections import plain

# Column -> the number of a run that it shows, where their names differ.
_NUMBERS = {"clip": "clip-score", "fid_30k": "fid", "clip_30k": "clip-score"}
_NUMBERS["boxes"] = "mace-8 boxes"
_MEASURED = "measured here"


def section(document: Document) -> Html:
  """Published lines of the run's protocol and, first, this run's own.

  It is empty where no table has the protocol, or where it was changed.
  """
  # A line is of one concept, or the mean of a head's, as of all styles.
  concepts = [one[key] for one in document.erased for key in ("class", "head")]
  tables = published.beside(document.protocol, concepts)
  return join(
    *(_table(document, name, lines) for name, lines in tables.items())
  )


def _table(document: Document, name: str, lines: list[published.Line]) -> Html:
  columns = published.numbers(lines)
  texts = [c for c in ("method", "concept", "source") if c in lines[0]]
  head = [c.replace("_", " ") for c in (*texts, *columns)]
  own = (
    element(
      "tr",
      element("th", model),
      *(element("td", _MEASURED if t == "source" else "") for t in texts[1:]),
      *(element("td", *measured(document, model, c)) for c in columns),
    )
    for model in document.models
  )
  others = (
    element(
      "tr",
      element("th", line["method"]),
      *(element("td", _said(line, text)) for text in texts[1:]),
      *(
        element("td", "–" if line[c] is None else plain(line[c]))
        for c in columns
      ),
    )
    for line in lines
  )
  note = (
    f"{document.protocol.partition(' ')[0]} made the published numbers, unless "
    "a source says otherwise. FID, CLIP score, time and memory may be of other "
    "pictures. Rates are in percent."
  )
  heads = {one["head"] for one in document.erased}
  if any(line["concept"] in heads for line in lines):
    note += " Published numbers are means of all such concepts, erased alone."
  return join(
    element("h2", f"Beside published numbers: {name.replace('_', ' ')}"),
    element("p", note, class_="note"),
    table("Published numbers", head, (*own, *others), "plain"),
  )


def _said(line: published.Line, text: str) -> str:
  note = f"; {line['note']}" if text == "source" and line["note"] else ""
  version = f", {line['version']}" if text == "source" else ""
  return f"{line[text]}{version}{note}"


def measured(document: Document, model: str, column: str) -> list[Any]:
  """The parts of a cell: this run's number for a published column, if any."""
  number = _NUMBERS.get(column, column)
  for one in document.estimates:
    if one["model"] != model or one["name"] != number:
      continue
    if one["value"] is None:
      return ["–", element("small", one.get("failed", ""))]
    share = one["k"] is not None or "of rates" in one.get("method", "")
    value = 100 * one["value"] if share else one["value"]
    small = f" {one['k']} of {one['n']}" if share else f" n {one['n']}"
    return [plain(value), element("small", small)]
  return ["–"]
