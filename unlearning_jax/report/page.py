"""The page around a report: head, style, and no access to the outside."""

import pathlib
from typing import Any

from unlearning_jax.report.markup import Html, element


def page(title: str, *parts: Any) -> str:
  """HTML text that needs no other file and can load none.

  Args:
    title: heading of the page.
    *parts: its sections, top to bottom.
  """
  style = pathlib.Path(__file__).with_name("style.css").read_text()
  # If anything escaped the escaping, it still could not run or load.
  policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
  head = element(
    "head",
    element("meta", charset="utf-8"),
    element("meta", http_equiv="Content-Security-Policy", content=policy),
    element("meta", name="viewport", content="width=device-width"),
    element("title", title),
    element("style", Html(style)),
  )
  body = element("body", element("h1", title), *parts)
  return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"
