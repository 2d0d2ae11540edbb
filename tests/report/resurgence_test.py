"""The page of a study, and its charts: what is in them, and where."""

import csv
import io
import re
import xml.etree.ElementTree as ElementTree

import pytest

from tests.metrics.resurgence_test import cell
from unlearning_jax.experiments.resurgence import summary
from unlearning_jax.metrics import study
from unlearning_jax.report import charts, resurgence
from unlearning_jax.report.charts import Point


def parsed(svg):
  return ElementTree.fromstring(str(svg))


def test_curves_stand_where_their_numbers_say():
  points = [Point(0, 0.0, 0.0, 0.0), Point(9, 0.5, 0.4, 0.7)]
  high = [Point(0, 0.0, 0.0, 0.0), Point(99, 1.5, 1.0, 9.0)]
  svg = parsed(
    charts.curves("a & b", {"x": points, "y": high}, {"x": "s1", "y": "s2"})
  )
  assert svg[0].text == "a & b"
  first, second = (g for g in svg if g.tag == "g")
  assert first.attrib["class"] == "s1" and "0.50 [0.40, 0.70]" in first[0].text
  line = [
    tuple(map(float, p.split(","))) for p in first[2].attrib["points"].split()
  ]
  band = [
    tuple(map(float, p.split(","))) for p in first[1].attrib["points"].split()
  ]
  top = [
    tuple(map(float, p.split(","))) for p in second[2].attrib["points"].split()
  ]
  # log(1 + 9) is half of log(1 + 99).
  assert line[1][0] == pytest.approx((line[0][0] + top[1][0]) / 2, abs=0.2)
  assert band[1][1] < line[1][1] < band[2][1] and len(band) == 4
  # What is beyond the panel is drawn at its edge.
  assert top[1][1] == pytest.approx(24)
  assert {t.text for t in svg if t.tag == "text"} >= {"0", "9", "99", "0.5"}


def test_heat_map_shades_by_value_and_marks_what_is_missing():
  cells = {("a", "u"): Point(5, 0.5, 0.4, 0.6), ("b", "u"): Point(5, -1, -2, 0)}
  svg = parsed(charts.heat_map(["a", "b"], ["u", "v"], cells))
  boxes = [x.attrib for x in svg if x.tag == "rect"]
  shades = [box.get("fill-opacity") for box in boxes]
  assert shades == ["0.375", None, "0.000", None]
  assert [box["class"] for box in boxes] == ["heat", "empty"] * 2
  assert {t.text for t in svg if t.tag == "text"} >= {
    "a", "b", "u", "v", "0.50", "-1.00", "0.40 to 0.60",
  }  # fmt: skip


def make_document():
  records = [
    cell("uce/star/near/full/none", 0, 0, 0, 0, 0, pull=-0.1),
    cell("esd_x/star/near/full/none", 0, 0, 2, 6, 12, pull=0.1),
    cell("esd_x/star/near/full/project", 0, 0, 1, 1, 2, pull=0.1),
    cell("esd_x/star/out/full/none", 0, 0, 1, 2, 3, pull=0.05),
    cell("esd_u/star/out/full/none", 0, 0, 2, 2, 3, pull=0.07),
    cell("rece/star/near/lora/none", 0, 20, 20, 20, 20),
  ]
  # Predictors want more erased models than a page of charts.
  more = [
    cell(f"{method}/neon/out/lora/none", 0, 0, 1, 2, 3, pull=0.02)
    for method in ("uce", "esd_x")
  ]
  return {
    "title": "A <study>",
    "threshold": 0.3,
    "cells": {"planned": 8, "measured": 6},
    "failed": [{"cell": "uce/moon/in/lora/none/0", "why": "ValueError: <no>"}],
    "conditions": study.summarize(records, 0.3),
    "predictors": study.predictors([*records, *more]),
  }


@pytest.fixture
def document():
  return make_document()


def test_the_page_has_all_that_was_measured(document):
  text = resurgence.render(document, {"runs": [{"command": "python -m x"}]})
  plain = " ".join(re.sub(r"<[^>]*>", " ", text).split())
  assert "1 of 4 runs on innocent data without a defense brought" in plain
  assert "6 of 8 runs are measured" in plain
  for part in (
    "Defenses, and their cost",
    "What predicts it",
    "python -m x",
  ):
    assert part in plain
  assert "A &lt;study&gt;" in text and "ValueError: &lt;no&gt;" in text
  # What the defense took off, in images; seed by seed; among which runs.
  assert "10, 0" in plain and "0.002" in plain and "0 → 12" in plain
  words = " ".join(plain.split())
  assert words.count("before tuning") == words.count("all before tuning") > 0
  # Both ends of the strongest run, and why one is not in the charts.
  assert "0.60 [" in plain and "the erasure removed almost nothing" in plain
  assert "http" not in text.split("</head>")[1] and "<script" not in text
  assert text.count('class="curve"') == 4


def test_the_csv_has_every_group_step_and_seed():
  run = "esd_x/star/near/full"
  records = [cell(f"{run}/none", seed, 0, 2, 6, 12) for seed in (0, 1)]
  records += [cell(f"{run}/anchor", seed, 0, 1, 1, 2) for seed in (0, 1)]
  text = summary.table(study.summarize(records, 0.3))
  rows = list(csv.DictReader(io.StringIO(text)))
  # Two conditions; the base and four stages; six groups.
  assert len(rows) == 2 * 5 * 6
  by = {(r["defense"], r["step"], r["group"]): r for r in rows}
  last = by["anchor", "50", "explicit"]
  assert [last[k] for k in ("k", "n", "k_by_seed")] == ["4", "40", "2 2"]
  assert [last[k] for k in ("lost", "gained", "p")] == ["0", "4", "0.125"]
  assert last["p_by_seed"] == "0.5 0.5"
  assert (last["lost_undefended"], last["gained_undefended"]) == ("20", "0")
  assert float(last["p_undefended"]) == pytest.approx(2 / 2**20, rel=1e-5)
  assert (last["moved"], last["reversion_prompt"]) == ("1 1", "1 1")
  assert float(last["harmonic"]) == pytest.approx(0.9)
  assert last["r_norm"] == "0.1" and float(last["area"]) > 0
  # Of no defense, before tuning and of the base there is nothing to compare.
  plain, first = by["none", "50", "explicit"], by["none", "0", "words"]
  assert plain["p_undefended"] == first["p"] == first["harmonic"] == ""
  assert by["none", "base", "explicit"]["k_by_seed"] == "20 20"
  assert by["none", "20", "explicit"]["area"] == ""


def test_an_empty_study_has_a_page_too(document):
  nothing = document | {"conditions": [], "predictors": [], "failed": []}
  text = resurgence.render(nothing, {})
  assert "0 of 0 runs on innocent data" in text
