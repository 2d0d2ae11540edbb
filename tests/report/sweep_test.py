"""The page of a sweep: its front, its lines, and what it escapes."""

import re

import pytest

from unlearning_jax.report import coordinates, sweep


def cell(i, state="done", **figures):
  return {
    "id": f"{i:012x}",
    "values": {"method": ["uce", "rece"][i % 2], "hparams.scale": 0.5 * i},
    "method": "uce",
    "state": state,
    "error": "x=-1: <b>no</b>" if state == "failed" else "",
    "seconds": 10.0 * i,
    "figures": figures,
  }


def share(value):
  return {"value": value, "low": value - 0.1, "high": value + 0.1}


def make_document():
  return {
    "title": "Sweep of erase over <method>",
    "verb": "erase",
    "keys": ["method", "hparams.scale"],
    "cells": [
      cell(1, erased=share(0.2), kept=share(0.9), fid={"value": 31.25}),
      cell(2, erased=share(0.8), kept=share(0.8), fid={"value": 12.0}),
      cell(3, erased=share(0.7), kept=share(0.6), fid={"value": 15.5}),
      cell(4, erased=share(0.9), kept=share(0.3)),
      cell(5, "failed"),
      cell(6, "not run"),
    ],
    "provenance": {"runs": []},
  }


def test_a_page_shows_the_front_and_every_cell(tmp_path):
  (tmp_path / "cells/000000000002").mkdir(parents=True)
  (tmp_path / "cells/000000000002/report.html").touch()
  text = sweep.html(make_document(), tmp_path)
  assert "4 of 6 cells are done, 1 failed." in text
  assert text.count("on the front</small>") == 3
  assert '<a href="cells/000000000002/report.html">' in text
  assert text.count("report.html") == 1
  assert "x=-1: &lt;b&gt;no&lt;/b&gt;" in text and "over &lt;method&gt;" in text
  labels = re.findall(r'aria-label="([^"]+)"', text)
  assert any(label.startswith("erased against kept; the") for label in labels)
  assert any("4 cells as lines through method, hpa" in one for one in labels)
  assert text.count("<circle") == 4 and text.count("<polyline") == 5


def test_a_page_without_results_says_so(tmp_path):
  document = make_document()
  document["cells"] = [cell(1, "not run"), cell(2, "not run")]
  text = sweep.html(document, tmp_path)
  assert "No cell measured both." in text and "No cell has ended." in text
  document["cells"] = [cell(1, asr=share(0.5)), cell(2, "not run")]
  text = sweep.html(document, tmp_path)
  assert "No cell measured both." in text and "<polyline" in text


@pytest.mark.parametrize(
  "points, wanted",
  [
    ({}, []),
    ({"a": (0.5, 0.5)}, ["a"]),
    # Equal points beat neither each other nor themselves.
    ({"a": (0.5, 0.5), "b": (0.5, 0.5)}, ["a", "b"]),
    ({"a": (0.5, 0.5), "b": (0.5, 0.6)}, ["b"]),
    ({"a": (0.9, 0.1), "b": (0.1, 0.9), "c": (0.1, 0.8)}, ["b", "a"]),
  ],
)
def test_the_front_is_what_nothing_beats(points, wanted):
  assert coordinates.front(points) == wanted


def test_an_axis_orders_numbers_and_choices():
  numbers = coordinates.Axis("x", [3, 1.0, None])
  assert [numbers.height(v) for v in (1.0, 3)] == [0, 1]
  choices = coordinates.Axis("x", ["b", "a", "b"])
  assert choices.ends() == ["a", "b"] and choices.height("b") == 1
  assert coordinates.Axis("x", [True, True]).height(True) == 0.5
