"""The page of an audit, from its document and the pictures below its folder."""

import pathlib
from collections.abc import Mapping
from typing import Any

from unlearning_jax.report.markup import element
from unlearning_jax.report.page import page


def html(document: Mapping[str, Any], root: pathlib.Path) -> str:
  """The page, for `report.html`.

  Args:
    document: the audit's `summary.json`.
    root: the audit's folder, below which the pictures lie.
  """
  del root
  lines = (
    element(
      "tr",
      element("th", one["victim"]),
      element("td", one["title"]),
      element("td", one["verdict"]),
      element("td", one["reason"]),
    )
    for one in document.get("verdicts", ())
  )
  return page(
    document.get("title", "Audit"),
    *(element("p", note) for note in document.get("notes", ())),
    element("table", element("tbody", *lines)),
  )
