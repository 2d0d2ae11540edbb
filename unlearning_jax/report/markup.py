"""HTML elements that escape their content, and bars."""

import html
from collections.abc import Iterable

_VOID = ("img", "meta")


class Html(str):
  """Text that is markup already; any other text is escaped."""

  def __html__(self) -> str:
    """What Jinja2 asks for, so that it does not escape this again."""
    return self


def element(tag: str, *children: object, **attributes: object) -> Html:
  """One element. A trailing `_` lets `class_` be an attribute.

  Args:
    tag: its name.
    *children: `Html` as it is; everything else as escaped text.
    **attributes: values are escaped; None leaves one out.
  """
  given = "".join(
    f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
    for name, value in attributes.items()
    if value is not None
  )
  if tag in _VOID:
    return Html(f"<{tag}{given}>")
  return Html(f"<{tag}{given}>{join(*children)}</{tag}>")


def join(*children: object) -> Html:
  """Children without an element around them."""
  return Html(
    "".join(
      child if isinstance(child, Html) else html.escape(str(child))
      for child in children
    )
  )


def table(
  label: str, head: Iterable[str], rows: Iterable[Html], class_: str = ""
) -> Html:
  """A table that scrolls sideways on a narrow screen, also by the keyboard.

  Args:
    label: a name for readers who cannot see it.
    head: the columns' names; "" leaves the cell empty.
    rows: each a `tr`.
    class_: CSS classes, as `plain` where no cell has a bar.
  """
  names = (
    element("th", name, scope="col") if name else element("td") for name in head
  )
  whole = element(
    "table",
    element("thead", element("tr", *names)),
    element("tbody", *rows),
    class_=class_ or None,
  )
  return scroll(label, whole, class_)


def scroll(label: str, inside: Html, class_: str = "") -> Html:
  """What scrolls sideways where it is wider than the page; see `table`."""
  return element(
    "div",
    inside,
    class_=f"wide {class_}".strip(),
    tabindex=0,
    role="region",
    aria_label=label,
  )


def command(line: str) -> Html:
  """A shell command whose lines break between its words alone.

  A browser would break `--workdir` behind its dashes.
  """
  words = (element("span", word) for word in line.split(" "))
  return element("pre", Html(" ".join(words)))


def named(name: str, class_: str) -> Html:
  """A method's name beside its color.

  Args:
    name: of a model, a method or an attack.
    class_: as `colors.classes` gives it.
  """
  return element("span", element("span", name, class_="stage"), class_=class_)


def interval_bar(value: float, low: float, high: float) -> Html:
  """A bar from 0 to 1: the interval as a band, the value as a tick."""
  x, left, right = (f"{4 + 92 * v:.4g}" for v in (value, low, high))
  return element(
    "svg",
    _line("track", 4, 96, 5, 5, 1.5),
    _line("range", left, right, 5, 5, 5),
    _line("value", x, x, 1.5, 8.5, 2),
    viewBox="0 0 100 10",
    role="img",
    aria_label=f"{value:.1%}, interval {low:.1%} to {high:.1%}",
  )


def _line(
  class_: str,
  x1: str | float,
  x2: str | float,
  y1: float,
  y2: float,
  width: float,
) -> Html:
  return element(
    "line",
    class_=class_,
    x1=x1,
    x2=x2,
    y1=y1,
    y2=y2,
    stroke_width=width,
    stroke_linecap="round",
  )
