"""Charts as inline SVG: curves with bands, and a heat map.

Colors are variables of the page, so they follow its light and dark schemes.
Every mark has a title, for readers who point at it or cannot see it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from unlearning_jax.report.markup import Html, element

_WIDTH, _HEIGHT = 340.0, 220.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 40.0, 8.0, 24.0, 32.0


class Point(NamedTuple):
  """A value at a step, with its interval."""

  step: int
  value: float
  low: float
  high: float


def curves(
  title: str,
  series: Mapping[str, Sequence[Point]],
  classes: Mapping[str, str],
  *,
  low: float = -0.1,
  high: float = 1.1,
  shares: bool = False,
) -> Html:
  """Curves over log(1 + step), each with its band.

  Args:
    title: above the panel.
    series: name -> points by rising step.
    classes: name -> CSS class that sets the color `--own`.
    low: bottom of the panel; lower values are drawn there.
    high: top of the panel; higher values are drawn there.
    shares: values are shares, which read as percent, over even steps.
  """
  last = max(p.step for points in series.values() for p in points)
  at = float if shares else math.log1p

  def x(step: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * at(step) / at(max(last, 1))

  def said(value: float, digits: str) -> str:
    return f"{value:.0%}" if shares else format(value, digits)

  def y(value: float) -> float:
    inside = (min(max(value, low), high) - low) / (high - low)
    return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * inside

  marks = [element("text", title, class_="name", x=_LEFT, y=14)]
  for value in (0.0, 0.5, 1.0):
    marks.append(line("grid", x(0), y(value), x(last), y(value)))
    marks.append(label(said(value, "g"), _LEFT - 6, y(value) + 4, "end"))
  steps = sorted({p.step for points in series.values() for p in points})
  taken = math.inf
  for step in reversed(steps):
    # Leave out a number that would overlap the next one.
    if taken - x(step) > 20:
      anchor = "end" if step == last else "middle"
      marks.append(label(str(step), x(step), _HEIGHT - 16, anchor))
      taken = x(step)
  marks.append(label("steps of tuning", x(last), _HEIGHT - 2, "end"))
  for name, points in series.items():
    there = [f"{x(p.step):.1f},{y(p.high):.1f}" for p in points]
    back = [f"{x(p.step):.1f},{y(p.low):.1f}" for p in reversed(points)]
    through = [f"{x(p.step):.1f},{y(p.value):.1f}" for p in points]
    ends = points[-1]
    value, *bounds = (said(one, ".2f") for one in ends[1:])
    text = f"{name}: {value} [{', '.join(bounds)}]"
    marks.append(
      element(
        "g",
        element("title", f"{text} at step {ends.step}"),
        element("polygon", points=" ".join(there + back), class_="band"),
        element("polyline", points=" ".join(through), class_="curve"),
        *(
          element(
            "circle", cx=f"{x(p.step):.1f}", cy=f"{y(p.value):.1f}", r=2.2
          )
          for p in points
        ),
        class_=classes[name],
      )
    )
  return element(
    "svg",
    *marks,
    viewBox=f"0 0 {_WIDTH:g} {_HEIGHT:g}",
    class_="chart",
    role="img",
    aria_label=title,
  )


def heat_map(
  rows: Sequence[str],
  columns: Sequence[str],
  cells: Mapping[tuple[str, str], Point],
) -> Html:
  """A table of colored cells from 0 (the page) to 1; no data, no color.

  Args:
    rows: their names.
    columns: their names.
    cells: (row, column) -> value; the interval stands below it.
  """
  wide, high, left, top = 104.0, 34.0, 190.0, 24.0
  marks = []
  for j, name in enumerate(columns):
    marks.append(label(name, left + wide * (j + 0.5), top - 8, "middle"))
  for i, row in enumerate(rows):
    at = top + high * i
    marks.append(label(row, left - 8, at + high / 2 + 4, "end"))
    for j, column in enumerate(columns):
      point = cells.get((row, column))
      box = {
        "x": left + wide * j + 1, "y": at + 1, "width": wide - 2,
        "height": high - 2, "rx": 3,
      }  # fmt: skip
      if point is None:
        marks.append(element("rect", class_="empty", **box))
        continue
      shade = f"{0.75 * min(max(point.value, 0.0), 1.0):.3f}"
      middle = left + wide * (j + 0.5)
      interval = f"{point.low:.2f} to {point.high:.2f}"
      marks += [
        element(
          "rect",
          element("title", f"{row}, {column}: {point.value:.2f}, {interval}"),
          class_="heat",
          fill_opacity=shade,
          **box,
        ),
        label(f"{point.value:.2f}", middle, at + 15, "middle", "value"),
        label(interval, middle, at + 27, "middle", "small"),
      ]
  width, height = left + wide * len(columns) + 4, top + high * len(rows) + 4
  return element(
    "svg",
    *marks,
    viewBox=f"0 0 {width:g} {height:g}",
    style=f"max-width: {width:g}px",
    class_="chart map",
    role="img",
    aria_label="heat map",
  )


def line(class_: str, x1: float, y1: float, x2: float, y2: float) -> Html:
  """A straight line of a chart."""
  ends = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
  return element(
    "line", class_=class_, **{k: f"{v:.1f}" for k, v in ends.items()}
  )


def label(
  text: str, x: float, y: float, anchor: str, class_: str | None = None
) -> Html:
  """A text of a chart; `anchor` is the end that stands at x."""
  return element(
    "text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, class_=class_
  )
