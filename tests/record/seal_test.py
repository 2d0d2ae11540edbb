"""Damage to a finished run is noticed when it is read."""

import json

import numpy as np
import pytest

from unlearning_jax import model
from unlearning_jax.durable import DamagedError
from unlearning_jax.record import seal
from unlearning_jax.record.workdir import Workdir

CONFIG = {"method": "uce"}
FILES = [
  "config.json", "results.jsonl", "edit.safetensors", "steps/1.safetensors",
  "images/a.png", "summary.json", "metrics.jsonl", "edit.probe.json",
  "provenance.json",
]  # fmt: skip


@pytest.fixture
def run(tmp_path):
  workdir = Workdir(tmp_path / "run", CONFIG)
  for i in range(3):
    workdir.append_row({"id": i, "score": 0.125})
  workdir.save_image("a", np.zeros((4, 4, 3), np.uint8))
  (workdir.path / "steps").mkdir()
  for name in FILES[2:4]:
    (workdir.path / name).write_bytes(b"some tensors")
  workdir.save_summary({"rows": 3})
  workdir.metrics(1, loss=0.5)
  workdir.write("edit.probe.json", '{"left": 0.25}')
  workdir.record_provenance(devices={})
  workdir.mark_done()
  return workdir.path


def flip(path):
  """One bit, where JSON stays JSON."""
  data = path.read_bytes()
  at = data.rindex(b"5") if b"0.125" in data else len(data) // 2
  path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "cut", "lose"])
def test_damage_is_said_with_the_file(run, name, damage):
  seal.check(run, images=True)
  path = run / name
  if damage == "flip":
    flip(path)
  elif damage == "cut":
    path.write_bytes(path.read_bytes()[:-1])
  else:
    path.unlink()
  with pytest.raises(DamagedError, match=f"{name} is (damaged|missing)"):
    seal.check(run, images=True)
  if name.startswith("images"):
    # Whoever reads the numbers alone needs no picture.
    seal.check(run)
  with pytest.raises(DamagedError, match=name):
    Workdir(run, CONFIG)


def test_the_readers_of_a_run_look(run):
  flip(run / "results.jsonl")
  with pytest.raises(DamagedError, match="bring back a copy, or delete"):
    model.finished(run)


@pytest.mark.parametrize("name", FILES[2:4])
def test_an_edit_is_compared_by_itself(run, name):
  flip(run / "results.jsonl")
  seal.check_file(run / name)
  flip(run / name)
  with pytest.raises(DamagedError, match=name):
    seal.check_file(run / name)


def test_a_sealed_folder_that_is_no_run_keeps_what_else_it_holds(tmp_path):
  """A victim of a matrix holds its finished cells."""
  path = tmp_path / "edit.safetensors"
  path.write_bytes(b"some tensors")
  seal.put(tmp_path)
  flip(path)
  words = f"delete {path} and {tmp_path / 'DONE'}, and run"
  with pytest.raises(DamagedError, match=words):
    seal.check_file(path)


def test_rows_may_follow_and_the_summary_may_change(run):
  workdir = Workdir(run, CONFIG)
  workdir.append_row({"id": 3, "score": 1.0})
  workdir.save_summary({"rows": 4})
  seal.check(run, images=True)
  workdir.mark_done()
  size, _ = json.loads((run / "DONE").read_text())["results.jsonl"]
  assert size == (run / "results.jsonl").stat().st_size


@pytest.mark.parametrize("then", ["killed", "ended"])
def test_a_start_writes_again_what_it_may(run, then):
  """It may be killed at any moment, and its files still fit their seal."""
  workdir = Workdir(run, CONFIG)
  workdir.record_provenance(devices={})
  workdir.metrics(2, loss=0.25)
  workdir.save_summary({"rows": 5})
  if then == "ended":
    workdir.mark_done()
  seal.check(run, images=True)
  sealed = json.loads((run / "DONE").read_text())
  assert ("summary.json" in sealed) == (then == "ended")
  assert {"config.json", "results.jsonl", *FILES[2:5]} <= {*sealed}
  assert Workdir(run, CONFIG).is_done


@pytest.mark.parametrize("text", ["", "{}"])
def test_a_run_from_before_there_were_seals_is_read(run, text):
  (run / "DONE").write_text(text)
  flip(run / "results.jsonl")
  seal.check(run, images=True)


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": 3}', '{"a": ["b", 1]}'])
def test_a_damaged_seal_is_said(run, text):
  (run / "DONE").write_text(text)
  with pytest.raises(
    DamagedError, match="DONE is damaged; delete it and start"
  ):
    seal.check(run)


def test_a_seal_names_no_file_outside(run):
  (run.parent / "other").write_text("")
  (run / "DONE").write_text('{"../other": [1, 1]}')
  with pytest.raises(DamagedError, match="DONE is damaged"):
    seal.check(run)
