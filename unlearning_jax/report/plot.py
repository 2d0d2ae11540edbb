"""A rate by number of images, drawn as steps with intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

from unlearning_jax.report import colors
from unlearning_jax.report.markup import Html, element

# The frame that the curves fill, inside a drawing of 320 by 190.
_LEFT, _RIGHT, _TOP, _BOTTOM = 34.0, 312.0, 8.0, 160.0


def curves(
  series: Mapping[str, Sequence[Mapping[str, Any]]],
  classes: Mapping[str, str] | None = None,
) -> Html:
  """One line for each series, and a legend; up to three have bands.

  Args:
    series: name -> rates by rising number of images. Each has `value` and, for
      the band of its 95 % interval, `low` and `high`, from 0 to 1. `images` is
      its number; without it the rates are after 1, 2, ... images.
    classes: name -> CSS classes of its color, as `colors.classes` gives them.
  """
  drawn_series = {name: rates for name, rates in series.items() if rates}
  own = classes or colors.classes(series)
  most = max(_images(rates)[-1] for rates in drawn_series.values())
  # More bands would hide each other.
  bands = len(drawn_series) <= 3
  drawn = [
    part
    for name, rates in drawn_series.items()
    for part in _series(rates, most, own[name], bands)
  ]
  legend = (
    element("span", name, class_=f"stage {own[name]}") for name in drawn_series
  )
  chart = element(
    "svg",
    *_axes(most),
    *drawn,
    viewBox="0 0 320 190",
    role="img",
    class_="plot",
    aria_label="success rate by number of images: "
    + "; ".join(
      f"{name} {rates[-1]['value']:.1%} after {_images(rates)[-1]}"
      for name, rates in drawn_series.items()
    ),
  )
  return element("div", chart, element("p", *legend, class_="legend"))


def _images(rates: Sequence[Mapping[str, Any]]) -> list[int]:
  return [rate.get("images", i) for i, rate in enumerate(rates, 1)]


def _x(b: float, most: int) -> float:
  return _LEFT + (_RIGHT - _LEFT) * b / most


def _y(rate: float) -> float:
  return _BOTTOM - (_BOTTOM - _TOP) * rate


def _axes(most: int):
  for percent in (0, 25, 50, 75, 100):
    y = _y(percent / 100)
    yield element(
      "line", class_="track", x1=_LEFT, x2=_RIGHT, y1=y, y2=y, stroke_width=0.6
    )
    yield element("text", f"{percent} %", x=_LEFT - 4, y=y + 3, class_="end")
  stride = max(1, -(-most // 10))
  for b in range(stride, most + 1, stride):
    x = _x(b - 0.5, most)
    yield element("text", b, x=f"{x:.4g}", y=_BOTTOM + 12, class_="middle")
  middle = (_LEFT + _RIGHT) / 2
  yield element("text", "images", x=middle, y=_BOTTOM + 26, class_="middle")


def _series(
  rates: Sequence[Mapping[str, Any]], most: int, class_: str, band: bool
):
  """The band, then the line; a rate holds until the next is known."""
  known = _images(rates)
  starts = [images - 1 for images in known]

  def steps(key: str) -> list[str]:
    return [
      f"{_x(x, most):.5g},{_y(rate[key]):.5g}"
      for start, end, rate in zip(
        starts, [*starts[1:], known[-1]], rates, strict=True
      )
      for x in (start, end)
    ]

  if band:
    points = " ".join(steps("low") + steps("high")[::-1])
    yield element("polygon", points=points, class_=f"band {class_}")
  line = " ".join(steps("value"))
  yield element("polyline", points=line, class_=f"curve {class_}")
