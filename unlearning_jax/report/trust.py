"""The page's section of what the judge itself gets wrong."""

from collections.abc import Mapping, Sequence
from typing import Any

from unlearning_jax.metrics.accuracy import Measure
from unlearning_jax.report.markup import Html, element, join, table
from unlearning_jax.report.sections import rate_cell


def judge_errors(found: Sequence[Mapping[str, Any]]) -> Html:
  """False positives and misses of the judge on the base's pictures.

  Args:
    found: fields of `metrics.judge_errors.errors`, one for each concept.
  """
  rows = [
    element(
      "tr",
      element("th", f"“{one['class']}”"),
      *(
        rate_cell(Measure("", **one[kind])) if one[kind] else element("td", "–")
        for kind in ("false_positives", "misses")
      ),
    )
    for one in found
    if one["false_positives"] or one["misses"]
  ]
  if not rows:
    return Html()
  note = (
    "On the base's pictures. “Seen unasked” counts pictures whose prompt does "
    "not ask for the concept. “Not seen” counts pictures whose prompt names "
    "it. The base may have drawn something else there, so the judge's own "
    "misses may be fewer."
  )
  head = ("", "seen unasked", "not seen")
  return join(
    element("h2", "The judge's own errors"),
    element("p", note, class_="note"),
    table("The judge's own errors", head, rows, "plain"),
  )
