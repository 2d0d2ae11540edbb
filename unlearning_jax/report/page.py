"""The page around a report: head, style, and no access to the outside."""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from unlearning_jax.report.markup import Html, join

_FOLDER = pathlib.Path(__file__).parent


def page(
  title: str, *parts: object, first: Mapping[str, str] | None = None
) -> str:
  """HTML text that needs no other file and can load none.

  Args:
    title: heading of the page.
    *parts: its sections, top to bottom.
    first: what the line below the heading names, as victim, base and concept;
      an empty text is left out.
  """
  return fill("page.html", title, first or {}, parts=join(*parts))


def subjects(
  victims: Sequence[str], base: str, mark: str, concepts: Sequence[str]
) -> dict[str, str]:
  """What the first line of a page names; an empty text where nobody knows.

  Args:
    victims: their names.
    base: where the base comes from, as a world's name or a folder.
    mark: the base's fingerprint.
    concepts: the names of what was erased.
  """

  def several(name: str, found: Sequence[str]) -> dict[str, str]:
    return {f"{name}s" if len(found) > 1 else name: ", ".join(found)}

  short = f"({mark[:8]})" if mark and base else mark[:8]
  return {
    **several("Victim", victims),
    "Base": f"{base} {short}".strip(),
    **several("Concept", concepts),
  }


def fill(name: str, title: str, first: Mapping[str, str], **given: Any) -> str:
  """A template of `templates/`, filled; every text that it shows is escaped.

  Args:
    name: the file, which extends `page.html`.
    title: heading of the page.
    first: as for `page`.
    **given: what the template reads.
  """
  named = [(key, text) for key, text in first.items() if text]
  return (
    _templates()
    .get_template(name)
    .render(title=title, first=named, style=_style(), **given)
  )


@functools.cache
def _style() -> Html:
  return Html((_FOLDER / "style.css").read_text(encoding="utf-8"))


@functools.cache
def _templates() -> jinja2.Environment:
  return jinja2.Environment(
    loader=jinja2.FileSystemLoader(_FOLDER / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
