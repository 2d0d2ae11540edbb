"""A run's results as one HTML page that needs no other file, and as CSV."""

from typing import Any

from unlearning_jax.report import sections, tables, trust
from unlearning_jax.report.document import Source, read
from unlearning_jax.report.markup import element
from unlearning_jax.report.page import page, subjects
from unlearning_jax.report.published import section

_NUMBERS = ("value", "low", "high", "k", "n")


def render_report(source: Source, *, show_unsafe: bool = False) -> str:
  """The page, for `report.html`.

  Args:
    source: a workdir with `summary.json`, or a dict as in `report.document`.
    show_unsafe: show unsafe images as they are; else the page has only blurred
      ones.

  Returns:
    HTML text that refers to nothing outside it.

  Raises:
    ValueError: the document is incomplete, or an image is missing.
  """
  document = read(source)
  return page(
    document.title,
    element("p", sections.verdict(document), class_="verdict"),
    sections.cards(document),
    *(element("p", note, class_="note") for note in document.notes),
    sections.pairs(document, show_unsafe),
    sections.accuracies(document),
    sections.classes(document),
    trust.judge_errors(document.judge_errors),
    sections.estimates(document),
    section.section(document),
    sections.diagnostics(document),
    sections.provenance(document.provenance),
    first=subjects(
      document.models[1:],
      "",
      sections.fingerprint(document.provenance),
      [f"“{one['class']}” ({one['head']})" for one in document.erased],
    ),
  )


def results_csv(source: Source) -> str:
  """A line for each number of each model, for `results.csv`.

  Numbers other than accuracies have the parts of their names in place of head,
  class and group.
  """
  columns: tuple[str, ...] = ("model", "head", "class", "group", *_NUMBERS)
  document = read(source)
  lines: list[list[Any]] = []
  for model, measures in document.measures.items():
    for name, *numbers in measures.values():
      lines.append([model, *name.split("/"), *numbers])
  for one in document.estimates:
    name = [*one["name"].split("/", 2), "", ""][:3]
    lines.append([one["model"], *name, *(one[key] for key in _NUMBERS)])
  return tables.to_csv(
    columns, [dict(zip(columns, line, strict=True)) for line in lines]
  )
