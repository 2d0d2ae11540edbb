"""`ul.sweep`: what it refuses at once, and the table that it returns."""

import pytest

import unlearning_jax as ul
from tests.support import toy_sweep


@pytest.fixture(autouse=True)
def toy(monkeypatch):
  toy_sweep.install(monkeypatch)


def test_a_sweep_is_a_table_with_a_row_for_each_cell(tmp_path):
  found = ul.sweep(
    "toy", {"x": 0, "hparams": {"rate": 0.5}},
    {"x": [0, 1], "hparams.rate": [0.25, 1]}, out=tmp_path / "sweep",
  )  # fmt: skip
  assert found.columns == (
    "id", "x", "hparams.rate", "state", "erased", "kept",
  )  # fmt: skip
  assert found.lines[2][1:] == ("1", "0.25", "done", "0.5", "0.5")
  assert found.rows[2] == {
    "id": found.lines[2][0], "x": 1, "hparams.rate": 0.25, "state": "done",
    "error": "", "erased": 0.5, "kept": 0.5,
  }  # fmt: skip
  assert "Pareto" not in repr(found) and "<svg" in found.page
  assert found.path == tmp_path / "sweep"
  run = ul.open(found.path / "cells" / found.rows[0]["id"])
  assert run.config["x"] == 0 and len(run.rows) == toy_sweep.ROWS


def test_without_a_folder_it_lives_as_long_as_its_result():
  found = ul.sweep("toy", {"x": 1}, {"seed": [3]})
  assert (found.path / "cells" / found.rows[0]["id"] / "DONE").exists()


@pytest.mark.parametrize(
  "config, grid, wanted",
  [
    ({"x": 0}, {"x": 3}, r"grid\['x'\]=3: must be a list; \[3\]"),
    ({"x": 0}, {"name": "ab"}, r"must be a list; \['ab'\]"),
    ({"x": 0}, {}, "--grid: is empty"),
    ({"x": 0}, {"x": ["1"]}, "--grid=x: '1' must be int"),
    ({"x": 0}, {"concept": ["star"]}, "concept is no setting; options such"),
    ("erase_recee", {"x": [1]}, "config='erase_recee': did|no config"),
  ],
)
def test_what_is_wrong_is_said_at_once(config, grid, wanted):
  with pytest.raises(ValueError, match=wanted):
    ul.sweep("toy", config, grid)
