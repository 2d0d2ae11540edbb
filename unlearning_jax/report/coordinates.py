"""Charts of many runs as inline SVG: parallel coordinates, and a plane.

Colors are variables of the page, and every mark has a title, as in `charts`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from unlearning_jax.report.charts import label, line
from unlearning_jax.report.markup import Html, element

_HEIGHT, _TOP, _BOTTOM = 260.0, 34.0, 22.0
_APART, _SIDE = 150.0, 70.0
# Of the plane, a square from 0 to 1.
_SQUARE, _LEFT = 300.0, 44.0


class Axis(NamedTuple):
  """A number or a choice of every run.

  Attributes:
    name: its name.
    values: one for each run; None where it is not known.
  """

  name: str
  values: Sequence[Any]

  @property
  def is_number(self) -> bool:
    """Whether all that is known are numbers."""
    known = [value for value in self.values if value is not None]
    return all(
      isinstance(value, int | float) and not isinstance(value, bool)
      for value in known
    )

  def ends(self) -> list[Any]:
    """The least and the greatest number, or the choices, from the bottom up."""
    known = [value for value in self.values if value is not None]
    if self.is_number:
      return sorted({min(known), max(known)}) if known else []
    return list(dict.fromkeys(map(str, known)))[::-1]

  def height(self, value: Any) -> float:
    """Where a value lies, from 0 at the bottom to 1 at the top."""
    ends = self.ends()
    if len(ends) < 2:
      return 0.5
    if self.is_number:
      return (value - ends[0]) / (ends[1] - ends[0])
    return ends.index(str(value)) / (len(ends) - 1)


class Line(NamedTuple):
  """A run: what it is in words, and the CSS class of its color."""

  said: str
  class_: str


def parallel(axes: Sequence[Axis], lines: Sequence[Line]) -> Html:
  """An upright line for each axis, and a line through them for each run.

  Args:
    axes: from left to right, with a value for each run.
    lines: the runs.
  """
  marks, inside = [], _HEIGHT - _TOP - _BOTTOM

  def x(i: int) -> float:
    return _SIDE + _APART * i

  def y(height: float) -> float:
    return _TOP + inside * (1 - height)

  for i, axis in enumerate(axes):
    marks.append(line("grid", x(i), y(0), x(i), y(1)))
    marks.append(label(axis.name, x(i), 14, "middle", "name"))
    for value in axis.ends():
      at = y(axis.height(value)) + (-8 if axis.height(value) == 1 else 14)
      marks.append(label(_short(value), x(i), at, "middle"))
  for j, one in enumerate(lines):
    known = [(i, a.values[j]) for i, a in enumerate(axes)]
    points = [
      f"{x(i):.1f},{y(axes[i].height(value)):.1f}"
      for i, value in known
      if value is not None
    ]
    found = ", ".join(
      f"{axes[i].name} {_short(value)}"
      for i, value in known
      if value is not None
    )
    curve = element("polyline", points=" ".join(points), class_="curve")
    title = element("title", found)
    marks.append(element("g", title, curve, class_=one.class_))
  width = 2 * _SIDE + _APART * (len(axes) - 1)
  names = ", ".join(axis.name for axis in axes)
  return _drawn(
    marks, width, _HEIGHT, f"{len(lines)} cells as lines through {names}"
  )


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
  """The Pareto front: points that no other beats on both axes.

  Args:
    points: name -> two numbers, of which more is better.

  Returns:
    Their names, by rising first number.
  """

  def beaten(x: float, y: float) -> bool:
    return any(
      a >= x and b >= y and (a, b) != (x, y) for a, b in points.values()
    )

  found = [name for name, point in points.items() if not beaten(*point)]
  return sorted(found, key=lambda name: (points[name][0], -points[name][1]))


def plane(
  names: Sequence[str],
  points: Mapping[str, tuple[float, float]],
  said: Mapping[str, str],
  classes: Mapping[str, str],
  best: Sequence[str],
) -> Html:
  """Runs as points over two shares, and a line through the Pareto front.

  Args:
    names: of the two shares.
    points: run -> both shares.
    said: run -> what it is in words.
    classes: run -> CSS class of its color.
    best: the runs on the front, from `front`.
  """

  def x(value: float) -> float:
    return _LEFT + _SQUARE * min(max(value, 0.0), 1.0)

  def y(value: float) -> float:
    return _TOP + _SQUARE * (1 - min(max(value, 0.0), 1.0))

  marks = []
  for value in (0.0, 0.5, 1.0):
    marks.append(line("grid", x(0), y(value), x(1), y(value)))
    marks.append(line("grid", x(value), y(0), x(value), y(1)))
    marks.append(label(f"{value:.0%}", _LEFT - 6, y(value) + 4, "end"))
    marks.append(label(f"{value:.0%}", x(value), y(0) + 16, "middle"))
  marks.append(label(names[0], x(1), y(0) + 30, "end", "name"))
  marks.append(label(names[1], _LEFT, _TOP - 10, "start", "name"))
  steps = " ".join(
    f"{x(a):.1f},{y(b):.1f}" for a, b in (points[i] for i in best)
  )
  marks.append(element("polyline", points=steps, class_="curve s0 d2"))
  for name, (a, b) in points.items():
    text = f"{said[name]}: {names[0]} {a:.0%}, {names[1]} {b:.0%}"
    marks.append(
      element(
        "g",
        element("title", text),
        element(
          "circle", cx=f"{x(a):.1f}", cy=f"{y(b):.1f}",
          r=5 if name in best else 3,
        ),
        class_=classes[name],
      )
    )  # fmt: skip
  there = "; ".join(
    f"{said[i]}: {points[i][0]:.0%}, {points[i][1]:.0%}" for i in best
  )
  return _drawn(
    marks, _LEFT + _SQUARE + 20, _TOP + _SQUARE + 40,
    f"{names[0]} against {names[1]}; the front is {there}",
  )  # fmt: skip


def _drawn(
  marks: Sequence[Html], width: float, height: float, text: str
) -> Html:
  return element(
    "svg", *marks, viewBox=f"0 0 {width:g} {height:g}", class_="chart",
    style=f"max-width: {width:g}px", role="img", aria_label=text,
  )  # fmt: skip


def _short(value: object) -> str:
  text = f"{value:.3g}" if isinstance(value, float) else str(value)
  return text if len(text) <= 20 else f"{text[:19]}…"
