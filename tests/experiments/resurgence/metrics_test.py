"""A metric of a user's own in a study: it sees every measurement."""

import csv
import io
import json
import re

import numpy as np
import pytest

from tests.support.resurgence_cases import finish, stubbed
from unlearning_jax.experiments.resurgence import summary
from unlearning_jax.metrics import Estimate, Metric
from unlearning_jax.record import Memory


def update(state, images, rows):
  found = dict(state)
  for image, row in zip(images, rows, strict=True):
    ids, white = found.get(row["model"], ([], 0))
    seen = "object" in row["judged"] and image.max() == 255
    found[row["model"]] = ([*ids, row["id"]], white + int(seen))
  return found


def merge(one, other):
  empty = ([], 0)
  return {
    model: tuple(
      a + b
      for a, b in zip(
        one.get(model, empty), other.get(model, empty), strict=True
      )
    )
    for model in {**one, **other}
  }


def compute(state):
  """The share of white images of each model; its rows are told apart."""
  for ids, _ in state.values():
    assert len(set(ids)) == len(ids)
  return [
    Estimate("white", white / len(ids), n=len(ids), model=model)
    for model, (ids, white) in state.items()
  ]


WHITE = Metric("white", dict, update, merge, compute)


@pytest.fixture
def start(monkeypatch, tmp_path):
  return stubbed(monkeypatch, tmp_path)


def test_a_users_metric_stands_in_summary_and_page(start):
  metrics = {"metrics": (f"{__name__}:WHITE", "r_norm")}
  plain, study = start(record=Memory(quiet=True)), start("b", **metrics)
  finish(plain)
  finish(study)
  # Resumed: the states are in the rows.
  del study
  study = start("b", **metrics)
  study.run.record_provenance(devices={})
  plain.run.record_provenance(devices={})
  summary.write(plain)
  summary.write(study)
  files = {name: plain.run.files[name] for name in ("results.csv",)}
  assert (study.run.path / "results.csv").read_text() == files["results.csv"]
  found = json.loads((study.run.path / "summary.json").read_text())
  without = plain.run.summary
  near = found["conditions"][0]
  values = {(m["name"], m["model"]): m for m in near.pop("metrics")}
  for one in found["conditions"][1:]:
    del one["metrics"]
  assert found == without
  # All that was drawn: by name and otherwise, and what it is tuned on.
  assert values["white", "base"]["n"] == values["white", "step 4"]["n"] == 12
  assert values["white", "base"]["value"] == 1
  assert values["white", "erased"]["value"] == 0
  table = list(csv.DictReader(io.StringIO(files["results.csv"])))
  last = [
    r for r in table
    if (r["step"], r["group"]) == ("4", "explicit")
    and (r["tuning_set"], r["algorithm"]) == ("near", "lora")
  ]  # fmt: skip
  wanted = values["r_norm/explicit", "step 4"]
  assert np.isclose(float(last[0]["r_norm"]), wanted["value"])
  text = re.sub(r"<[^>]*>", " ", (study.run.path / "report.html").read_text())
  assert "Metrics" in text and "step 4 white" in " ".join(text.split())
  assert "Metrics" not in plain.run.files["report.html"]
