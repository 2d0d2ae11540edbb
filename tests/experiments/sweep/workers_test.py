"""Cells of a sweep: each runs once, whoever runs it."""

import collections
import csv
import json
import os
import signal
import subprocess
import sys
import time
import types

import jax
import pytest

from tests.support import scripts, toy_sweep
from unlearning_jax import checking, durable
from unlearning_jax import model as models
from unlearning_jax.experiments import common, sweep
from unlearning_jax.experiments.sweep import folder, verbs
from unlearning_jax.experiments.sweep import table as sweep_table
from unlearning_jax.experiments.sweep import workers as runs
from unlearning_jax.record import leases, tracking


@pytest.fixture(autouse=True)
def toy(monkeypatch):
  toy_sweep.install(monkeypatch)
  monkeypatch.setattr(runs, "_LOOK_S", 0.01)


def starts(root):
  """Cell -> how often it was started."""
  text = (root / "starts.log").read_text()
  return collections.Counter(line.split()[0] for line in text.splitlines())


def table(root):
  return list(csv.DictReader((root / "results.csv").open()))


def test_every_cell_is_a_run_and_runs_once(tmp_path):
  planned = toy_sweep.plan(3)
  assert sweep.run(planned, tmp_path) == 0
  for cell in planned.cells:
    folder = tmp_path / "cells" / cell.id
    assert (folder / "DONE").exists()
    assert json.loads((folder / "config.json").read_text())["x"] == cell.given.x
  assert sweep.run(planned, tmp_path) == 0
  assert starts(tmp_path) == {cell.id: 1 for cell in planned.cells}
  assert [(r["x"], r["state"], r["erased"]) for r in table(tmp_path)] == [
    ("0", "done", "0.0"), ("1", "done", "0.5"), ("2", "done", str(1 - 1 / 3)),
  ]  # fmt: skip
  assert "Sweep of toy over x" in (tmp_path / "report.html").read_text()


def test_a_worker_reads_the_base_of_its_cells_once(tmp_path, monkeypatch):
  read = []

  def load(source, **how):
    read.append(source)
    return types.SimpleNamespace(sd=None)

  def run(given, opened, edit):
    named = {"dtype": "float32", "attention": "auto", "kernels": "exact"}
    common.load_model(types.SimpleNamespace(model=given.name, **named))
    opened().mark_done()

  monkeypatch.setattr(models, "load", load)
  monkeypatch.setitem(verbs.VERBS, "toy", verbs.Verb(toy_sweep.Settings, run))
  grid = [("name", ["one", "two"]), ("seed", range(3))]
  assert sweep.run(sweep.plan("toy", toy_sweep.base(), grid), tmp_path) == 0
  assert read == ["one", "two"]
  # Outside of a sweep a model may have changed since.
  for _ in range(2):
    run(
      types.SimpleNamespace(name="one"),
      lambda: types.SimpleNamespace(mark_done=lambda: None), "",
    )  # fmt: skip
  assert read == ["one", "two", "one", "one"]


def test_a_cell_fails_alone_and_is_retried_alone(tmp_path, monkeypatch):
  grid = [("name", ["good", "bad"])]
  planned = sweep.plan("toy", toy_sweep.base(), grid)
  assert sweep.run(planned, tmp_path) == 1
  assert [r["state"] for r in table(tmp_path)] == ["done", "failed"]
  assert table(tmp_path)[1]["error"] == "comes of it"
  # It is not tried again before somebody asks for it.
  assert sweep.run(planned, tmp_path) == 1
  assert sweep.run(planned, tmp_path, retry=True) == 1
  good, bad = planned.cells
  assert starts(tmp_path) == {good.id: 1, bad.id: 2}

  def mended(given, opened, edit):
    opened().mark_done()

  monkeypatch.setitem(
    verbs.VERBS, "toy", verbs.Verb(toy_sweep.Settings, mended)
  )
  assert sweep.run(planned, tmp_path, retry=True) == 0
  assert not list(tmp_path.glob("cells/*/failed.txt"))
  assert [r["state"] for r in table(tmp_path)] == ["done", "done"]


def test_a_retry_of_two_workers_tries_once(tmp_path):
  planned = sweep.plan("toy", toy_sweep.base(), [("name", ["bad"])])
  sweep.run(planned, tmp_path)
  store = folder.Store(tmp_path)
  (cell,) = planned.cells
  # This worker has seen the failure; another tries the cell in the meantime.
  store.again = {cell: store.age(cell)}
  assert not store.ended(cell)
  sweep.run(planned, tmp_path, retry=True)
  assert store.ended(cell)


def test_parts_of_an_array_job_are_all_of_it(tmp_path):
  planned = toy_sweep.plan(5)
  for text in ("1/2", "2/2"):
    assert sweep.run(planned, tmp_path, part=sweep.part_of(text)) == 0
  assert starts(tmp_path) == {cell.id: 1 for cell in planned.cells}
  assert [row["state"] for row in table(tmp_path)] == ["done"] * 5


def test_a_part_takes_its_own_dead_cell_over(tmp_path, monkeypatch):
  clock = [0.0]
  monkeypatch.setattr(leases, "_boot", lambda: "")

  def held(folder):
    return leases.Leases(folder, clock=lambda: clock[0])

  def waits(seconds):
    clock[0] += 50

  monkeypatch.setattr(runs, "_sleep", waits)
  planned = toy_sweep.plan(2)
  # Both were taken on another machine, and have been silent since.
  dead = held(tmp_path / "leases")
  assert all(dead.take(cell.id) for cell in planned.cells)
  (tmp_path / "sweep.json").write_text(
    durable.to_json(sweep_table.plain(planned), "sweep")
  )
  assert sweep.run(planned, tmp_path, part=(1, 2), held=held) == 0
  assert starts(tmp_path) == {planned.cells[0].id: 1}


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "-1/3", "1/0"])
def test_a_part_that_is_none(text):
  with pytest.raises(ValueError, match=f"--cell={text}: .*--array=1-16"):
    sweep.part_of(text)


def test_trackers_hear_of_every_cell(tmp_path, monkeypatch):
  heard = []

  class Told:
    def __init__(self, folder, name):
      self.name = name

    def end(self, values, figures):
      heard.append((self.name, values, figures))

  monkeypatch.setitem(tracking._TRACKERS, "told", Told)
  monkeypatch.setitem(tracking._PACKAGES, "told", "json")
  grid = [("name", ["good", "bad"])]
  planned = sweep.plan("toy", toy_sweep.base(), grid)
  sweep.run(planned, tmp_path, track=["told"])
  good, bad = planned.cells
  share = {"erased": 0.0, "kept": 1.0}
  assert heard == [(good.id, good.values, share), (bad.id, bad.values, {})]
  with pytest.raises(ValueError, match="track='tld'"):
    sweep.run(planned, tmp_path, track=["tld"])


def test_a_sweep_s_damaged_plan_is_said(tmp_path):
  sweep.run(toy_sweep.plan(2), tmp_path)
  file = tmp_path / "sweep.json"
  file.write_text(file.read_text()[:-9])
  with pytest.raises(ValueError, match="sweep.json: not readable as JSON"):
    sweep.run(toy_sweep.plan(2), tmp_path)


def test_another_sweep_s_folder_is_refused(tmp_path):
  sweep.run(toy_sweep.plan(2), tmp_path)
  other = sweep.plan("toy", toy_sweep.base(scale=2.0), [("x", [0, 1])])
  with pytest.raises(ValueError, match="another sweep, with 2 cells.* x=0"):
    sweep.run(other, tmp_path)
  keys = sweep.plan("toy", toy_sweep.base(), [("name", ["a"])])
  with pytest.raises(ValueError, match="another sweep, with 2 cells.* x=0"):
    sweep.run(keys, tmp_path)
  # More values of the same keys go on in it.
  assert sweep.run(toy_sweep.plan(3), tmp_path) == 0
  assert len(table(tmp_path)) == 3
  # So does a start that names some cells only, or has seeds too.
  assert sweep.run(toy_sweep.plan(1), tmp_path) == 0
  assert len(table(tmp_path)) == 3
  seeds = sweep.plan("toy", toy_sweep.base(), [("x", [2, 1, 0])], seeds=2)
  assert sweep.run(seeds, tmp_path) == 0
  assert len(table(tmp_path)) == 6 and max(starts(tmp_path).values()) == 1
  (tmp_path / "else").mkdir()
  (tmp_path / "else/mine.txt").touch()
  with pytest.raises(ValueError, match="holds no sweep, but.*mine.txt"):
    sweep.run(toy_sweep.plan(2), tmp_path / "else")


def test_processes_that_have_joined_are_no_workers(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(ValueError, match="sweep: 2 processes have joined"):
    sweep.run(toy_sweep.plan(1), tmp_path / "sweep")
  assert not (tmp_path / "sweep").exists()


def test_a_check_writes_nothing(tmp_path):
  root = tmp_path / "sweep"
  checking.ask(True)
  try:
    with pytest.raises(checking.Checked):
      sweep.run(toy_sweep.plan(2), root)
  finally:
    checking.ask(False)
  assert not root.exists()


def test_the_cost_is_unknown_until_a_cell_has_ended(tmp_path):
  planned = toy_sweep.plan(3)
  text = sweep.described(planned, tmp_path)
  assert "3 cells of toy, 3 left" in text and "cost unknown" in text
  assert not (tmp_path / "cells").exists()
  sweep.run(planned, tmp_path, part=(1, 3))
  (cost,) = tmp_path.glob("cells/*/cost.json")
  cost.write_text('{"seconds": 90}')
  text = sweep.described(planned, tmp_path)
  assert "3 cells of toy, 2 left" in text
  assert "one took 90.0 s, so about 3.0 min are left" in text


def test_what_is_left_is_what_a_start_would_run(tmp_path):
  grid = [("name", ["good", "bad", "other", "last"])]
  planned = sweep.plan("toy", toy_sweep.base(), grid)
  sweep.run(planned, tmp_path, part=(1, 4))
  sweep.run(planned, tmp_path, part=(2, 4))

  def left(**which):
    lines = sweep.described(planned, tmp_path, **which).splitlines()
    return next(line for line in lines if "cells of toy" in line)

  assert left() == "4 cells of toy, 2 left"
  assert left(retry=True) == "4 cells of toy, 1 left"
  assert left(part=(1, 2)) == "2 cells of toy, 1 left"


def test_the_cost_is_of_a_cell_that_was_never_killed(tmp_path):
  planned = toy_sweep.plan(3)
  sweep.run(planned, tmp_path, part=(1, 3))
  sweep.run(planned, tmp_path, part=(2, 3))
  for cell, seconds in zip(planned.cells, (1, 90), strict=False):
    cost = tmp_path / "cells" / cell.id / "cost.json"
    cost.write_text(f'{{"seconds": {seconds}}}')
  assert "one took 1.0 s" in sweep.described(planned, tmp_path)
  # The first cell's worker was killed, and another ended it.
  (tmp_path / "leases" / f"{planned.cells[0].id}.2").touch()
  assert "one took 90.0 s" in sweep.described(planned, tmp_path)


def test_an_audit_that_stopped_is_tried_again_and_a_failed_one_is_not(
  tmp_path, monkeypatch
):
  def stage(name):
    def ends(given, opened, edit):
      (opened().path / "attack/UCE").mkdir(parents=True, exist_ok=True)
      (opened().path / "attack/UCE" / name).touch()

    monkeypatch.setitem(
      verbs.VERBS, "toy", verbs.Verb(toy_sweep.Settings, ends)
    )
    return sweep.run(planned, tmp_path)

  planned = toy_sweep.plan(1)
  assert stage("results.jsonl") == 1
  assert [row["state"] for row in table(tmp_path)] == ["not run"]
  assert not list(tmp_path.glob("cells/*/cost.json"))
  assert stage("failed.txt") == 1
  assert [row["state"] for row in table(tmp_path)] == ["failed"]


def test_a_worker_that_lost_its_cell_records_nothing_more(
  tmp_path, monkeypatch
):
  clock = [0.0]
  monkeypatch.setattr(leases, "_boot", lambda: "")

  def held(folder):
    return leases.Leases(folder, beat_s=20, dead_s=120, clock=lambda: clock[0])

  def slept(given, opened, edit):
    record = opened()
    record.append_row({"id": 0})
    clock[0] += 500
    record.append_row({"id": 1})

  monkeypatch.setitem(verbs.VERBS, "toy", verbs.Verb(toy_sweep.Settings, slept))
  planned = toy_sweep.plan(1)
  folder = tmp_path / "cells" / planned.cells[0].id

  def waits(seconds):
    if verbs.VERBS["toy"].run is slept:
      assert len((folder / "results.jsonl").read_text().splitlines()) == 1
      assert not (folder / "failed.txt").exists()
      toy_sweep.install(monkeypatch)
    clock[0] += 50

  # Nobody else comes, so it takes the cell again once that looks dead.
  monkeypatch.setattr(runs, "_sleep", waits)
  assert sweep.run(planned, tmp_path, held=held) == 0
  assert len([*(tmp_path / "leases").iterdir()]) == 2


def test_a_cell_that_another_writes_is_left_to_it(tmp_path, monkeypatch):
  planned = toy_sweep.plan(1)

  def busy(given, opened, edit):
    raise durable.BusyError("results.jsonl is being written by another run")

  def ends(seconds):
    assert not list(tmp_path.glob("cells/*/failed.txt"))
    toy_sweep.install(monkeypatch)

  monkeypatch.setattr(runs, "_sleep", ends)
  monkeypatch.setitem(verbs.VERBS, "toy", verbs.Verb(toy_sweep.Settings, busy))
  assert sweep.run(planned, tmp_path) == 0


def worker(root, count, pause):
  command = [sys.executable, "-m", "tests.support.toy_sweep"]
  return subprocess.Popen(
    [*command, str(root), str(count), str(pause)], cwd=scripts.ROOT,
    stdout=subprocess.DEVNULL,
  )  # fmt: skip


def test_three_workers_one_of_which_is_killed(tmp_path):
  root, alone = tmp_path / "together", tmp_path / "alone"
  workers = [worker(root, 9, 0.05) for _ in range(3)]
  until = time.monotonic() + 120
  log = root / "starts.log"
  victim = None
  while victim is None:
    assert time.monotonic() < until
    lines = log.read_text().splitlines() if log.exists() else []
    own = {int(line.split()[1]) for line in lines}
    victim = next((w for w in workers if w.pid in own), None)
  os.kill(victim.pid, signal.SIGKILL)
  for one in workers:
    assert one.wait(120) == (-signal.SIGKILL if one is victim else 0)
  planned = toy_sweep.plan(9)
  again = starts(root)
  assert {*again} == {cell.id for cell in planned.cells}
  # Only the cell that was cut off was started twice, and its rows went on.
  assert again.total() <= 10
  for cell in planned.cells:
    rows = (root / "cells" / cell.id / "results.jsonl").read_text()
    ids = [json.loads(line)["id"] for line in rows.splitlines()]
    assert ids == [0, 1, 2]
  sweep.run(planned, alone)
  assert (root / "results.csv").read_text() == (
    alone / "results.csv"
  ).read_text()
