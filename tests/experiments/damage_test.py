"""Damage to any one file of a finished run is said when it is read next.

The runs have the files that each verb leaves. A page, a table and a log are
written again from these, or are for people alone, and have no seal.
"""

import shutil

import numpy as np
import pytest

import unlearning_jax as ul
from unlearning_jax import probe
from unlearning_jax.durable import DamagedError
from unlearning_jax.experiments import common
from unlearning_jax.record.workdir import Workdir
from unlearning_jax.report import index, leaderboard

CONFIG = {"method": "uce", "seed": 3}
EVERY = ("config.json", "provenance.json", "summary.json", "results.jsonl")
# Verb -> what it leaves beside these.
VERBS = {
  "erase": ("edit.safetensors", "statistics.safetensors", "edit.probe.json"),
  "sld": ("guidance.json", "edit.probe.json"),
  "finetune": ("steps/000002.safetensors", "lora.safetensors", "metrics.jsonl"),
  "evaluate": ("images/a.png", "images/b/c.png", "metrics/00000.safetensors"),
  "attack": ("images/targets/a.png", "images/b.png"),
  "measure": ("statistics.npz",),
  "resurgence": ("edits/uce-star-0.safetensors", "edits/uce-star-0.probe.json"),
}  # fmt: skip
UNSEALED = ("report.html", "results.csv", "job.log")


def write(folder, verb, value=0.25):
  """A run that has ended; another value gives other files."""
  run = Workdir(folder, CONFIG | {"value": value})
  run.record_provenance(devices={}, seeds={"seed": int(value * 100)})
  for i in range(2):
    run.append_row({"id": i, "score": value})
  for name in VERBS[verb]:
    if name.endswith(".png"):
      image = np.full((4, 4, 3), int(value * 100), np.uint8)
      run.save_image(name[7:-4], image)
    elif name.endswith(".jsonl"):
      run.metrics(1, loss=value)
    else:
      (folder / name).parent.mkdir(exist_ok=True)
      (folder / name).write_text(f'{{"left": {value}}}')
  for name in UNSEALED:
    (folder / name).write_text("for people")
  run.save_summary({"title": "a run", "rows": value})
  run.mark_done()
  return folder


def flip(path, _):
  data = path.read_bytes()
  at = len(data) // 2
  path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


DAMAGES = {
  "flip": flip,
  "cut": lambda path, _: path.write_bytes(path.read_bytes()[:-3]),
  "empty": lambda path, _: path.write_bytes(b""),
  "lose": lambda path, _: path.unlink(),
  "exchange": lambda path, other: shutil.copy(other, path),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("verb", VERBS)
def test_damage_to_any_file_is_said(verb, damage, tmp_path):
  whole, other = (write(tmp_path / str(v), verb, v) for v in (0.25, 0.5))
  run = tmp_path / "run"
  for name in (*EVERY, *VERBS[verb]):
    shutil.copytree(whole, run)
    DAMAGES[damage](run / name, other / name)
    # A start says it before it writes. Without a config it is no run's folder.
    gone = (damage, name) == ("lose", "config.json")
    words = f"{name} is (damaged|missing)"
    with pytest.raises(ValueError, match=words):
      Workdir(run, CONFIG | {"value": 0.25})
    # So does a reader; pictures are compared by a start alone.
    if not name.startswith("images/"):
      with pytest.raises(ValueError, match="config.json" if gone else words):
        ul.open(run)
    shutil.rmtree(run)


@pytest.mark.parametrize("name", UNSEALED)
def test_what_is_for_people_has_no_seal(name, tmp_path):
  run = write(tmp_path / "run", "erase")
  (run / name).unlink()
  assert ul.open(run).summary["rows"] == 0.25


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_seal_loses_nothing(damage, tmp_path):
  """Only an empty one passes: runs of earlier versions have it."""
  whole, other = (write(tmp_path / str(v), "evaluate", v) for v in (0.25, 0.5))
  DAMAGES[damage](whole / "DONE", other / "DONE")
  if damage == "empty":
    assert ul.open(whole).summary["rows"] == 0.25
    return
  with pytest.raises(ValueError, match="damaged|has not ended; start it again"):
    ul.open(whole)


def test_one_file_by_itself(tmp_path):
  """`--edit=`, the probe and a model's file read one file of a run."""
  erased = write(tmp_path / "erase", "erase")
  flip(erased / "edit.probe.json", None)
  with pytest.raises(DamagedError, match="edit.probe.json is damaged"):
    probe.of(erased / "edit.safetensors")
  flip(erased / "edit.safetensors", None)
  with pytest.raises(DamagedError, match="edit.safetensors is damaged"):
    common.read_made(erased)
  guided = write(tmp_path / "sld", "sld")
  flip(guided / "guidance.json", None)
  with pytest.raises(DamagedError, match="guidance.json is damaged"):
    common.read_made(guided)


def test_tables_of_many_runs(tmp_path):
  """The index shows the others too; a leaderboard needs all of its runs."""
  runs = tmp_path / "runs"
  write(runs / "whole", "evaluate")
  broken = write(runs / "broken", "evaluate")
  flip(broken / "summary.json", None)
  page = index.write(runs).read_text()
  assert "summary.json is damaged: it is not what was written" in page
  assert page.count("chip damaged") == 1 and page.count("chip done") == 1
  with pytest.raises(DamagedError, match="broken/summary.json is damaged"):
    leaderboard.lines([broken])
  # Of an old run without a seal, what is no summary is said too.
  (broken / "DONE").write_text("")
  (broken / "summary.json").write_text('{"protocol": "a", "models": 3}')
  with pytest.raises(ValueError, match="broken: is damaged, or not what this"):
    leaderboard.lines([broken])
  (broken / "provenance.json").write_text('{"runs": [3]}')
  with pytest.raises(ValueError, match="provenance.json: is damaged"):
    Workdir(broken, CONFIG | {"value": 0.25}).record_provenance(devices={})
