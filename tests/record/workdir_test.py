"""One run's record: whole rows, honest resumes, and survival of a kill."""

import fcntl
import json
import pathlib
import random
import signal
import subprocess
import sys
import time

import ml_collections
import numpy as np
import pytest
from PIL import Image

from unlearning_jax.durable import JsonLines
from unlearning_jax.guidance import Guidance
from unlearning_jax.model import called
from unlearning_jax.record.workdir import Workdir

CONFIG = {"method": "uce", "hparams": {"scale": 0.5, "tasks": ("a", "b")}}


# --- Opening and resuming ---


def test_a_new_folder_records_its_config(tmp_path):
  config = ml_collections.ConfigDict(CONFIG)
  workdir = Workdir(tmp_path / "a/b", config)
  found = json.loads((tmp_path / "a/b/config.json").read_text())
  assert found == {
    "method": "uce",
    "hparams": {"scale": 0.5, "tasks": ["a", "b"]},
  }
  assert not workdir.is_done
  assert workdir.rows() == [] and workdir.done_ids() == set()
  Workdir(tmp_path / "a/b", CONFIG)


def test_a_start_that_recorded_nothing_binds_nobody(tmp_path):
  first = Workdir(tmp_path, CONFIG)
  first.record_provenance(devices={}, base_fingerprint="one")
  other = {**CONFIG, "seed": 1}
  # Another process looks, and writes nothing.
  Workdir(tmp_path, other, process_index=1, process_count=2)
  assert "seed" not in json.loads((tmp_path / "config.json").read_text())
  second = Workdir(tmp_path, other)
  second.record_provenance(devices={}, base_fingerprint="two")
  assert json.loads((tmp_path / "config.json").read_text())["seed"] == 1
  runs = json.loads((tmp_path / "provenance.json").read_text())["runs"]
  assert [run["base_fingerprint"] for run in runs] == ["two"]


def test_folders_that_cannot_be_written_are_refused(tmp_path):
  (tmp_path / "file").write_text("")
  for path in (tmp_path / "file", tmp_path / "file/below", "/proc/run"):
    with pytest.raises(ValueError, match="workdir: .* cannot be written"):
      Workdir(path, {})
  for path in ("", "gs://bucket/run"):
    with pytest.raises(ValueError, match="is no folder on this machine"):
      Workdir(path, {})


def test_rows_without_a_config_are_not_adopted(tmp_path):
  (tmp_path / "results.jsonl").write_text('{"id": 1}\n')
  with pytest.raises(ValueError, match="no config.json"):
    Workdir(tmp_path, {})


def test_a_foreign_folder_is_left_alone(tmp_path):
  (tmp_path / "thesis.tex").write_text("mine")
  with pytest.raises(
    ValueError, match="1 other files such as thesis.tex; name a"
  ):
    Workdir(tmp_path, CONFIG)
  assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]
  # What a scheduler or a failed cell has left is no reason.
  (tmp_path / "thesis.tex").rename(tmp_path / "slurm-7.out")
  (tmp_path / "failed.txt").touch()
  assert not Workdir(tmp_path, CONFIG).is_done


def test_process_0_may_open_the_folder_last(tmp_path):
  peer = Workdir(tmp_path, CONFIG, process_index=1, process_count=2)
  assert not (tmp_path / "config.json").exists()
  peer.append_row({"id": 1})
  peer.save_image("1", np.zeros((2, 2, 3), np.uint8))
  Workdir(tmp_path, CONFIG, process_count=2).append_row({"id": 0})
  assert peer.done_ids() == {0, 1}


def test_metrics_of_a_repeated_step_are_written_once(tmp_path):
  Workdir(tmp_path, CONFIG).metrics(1, loss=1.0, seconds=0.5)
  again = Workdir(tmp_path, CONFIG)
  again.metrics(1, loss=1.0, seconds=0.7)
  again.metrics(2, loss=0.5, seconds=0.7)
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == [1, 2]


def test_a_run_of_another_kind_is_left_alone(tmp_path):
  Workdir(tmp_path, CONFIG).metrics(0, loss=1.0)
  with pytest.raises(ValueError, match="another kind: .*hparams.*lanes; use"):
    Workdir(tmp_path, {"method": "uce", "lanes": 2})


def test_a_config_must_be_plain(tmp_path):
  with pytest.raises(ValueError, match="config: .* has no JSON form"):
    Workdir(tmp_path, {"f": print})
  assert not (tmp_path / "config.json").exists()


# --- Rows ---


def test_rows_are_kept_in_order_and_by_id(tmp_path):
  workdir = Workdir(tmp_path, {})
  workdir.append_row({"id": "b", "score": np.float32(0.5), "t": np.arange(2)})
  workdir.append_row({"id": "a", "ok": np.bool_(True)})
  with pytest.raises(ValueError, match="id 'a' is already in"):
    workdir.append_row({"id": "a"})
  rows = [{"id": "b", "score": 0.5, "t": [0, 1]}, {"id": "a", "ok": True}]
  assert workdir.rows() == rows
  assert workdir.done_ids() == {"a", "b"}


@pytest.mark.parametrize(
  "row, message",
  [
    ({}, "'id' must be a str or an int; got None"),
    ({"id": 1.5}, "got 1.5"),
    ({"id": 3, "loss": float("nan")}, "row 3: .*'loss': nan"),
    ({"id": 3, "loss": np.array([np.inf])}, "row 3: Out of range"),
  ],
)
def test_bad_rows_leave_nothing_behind(tmp_path, row, message):
  workdir = Workdir(tmp_path, {})
  with pytest.raises(ValueError, match=message):
    workdir.append_row(row)
  assert workdir.rows() == []
  workdir.append_row({"id": 3})


def test_a_torn_last_line_is_dropped_and_redone(tmp_path):
  Workdir(tmp_path, {}).append_row({"id": 1})
  file = tmp_path / "results.jsonl"
  file.write_bytes(file.read_bytes() + b'{"id": 2, "im')
  workdir = Workdir(tmp_path, {})
  assert workdir.done_ids() == {1}
  assert file.read_bytes().endswith(b'"im'), "a reader must not cut the file"
  workdir.append_row({"id": 2})
  assert file.read_bytes() == b'{"id": 1}\n{"id": 2}\n'


def test_damage_in_the_middle_is_named(tmp_path):
  Workdir(tmp_path, {})
  (tmp_path / "results.jsonl").write_text('{"id": 1}\n{"id"\n{"id": 2}\n')
  with pytest.raises(ValueError, match="results.jsonl, line 2, is damaged"):
    Workdir(tmp_path, {}).rows()


def test_two_writers_cannot_share_a_rows_file(tmp_path):
  first = Workdir(tmp_path, {})
  first.append_row({"id": 1})
  with open(tmp_path / "results.jsonl") as other:
    with pytest.raises(BlockingIOError):
      fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
  # A later run of this process goes on, and the first is over.
  second = Workdir(tmp_path, {})
  second.append_row({"id": 2})
  with pytest.raises(ValueError, match="written by a later run of this proc"):
    first.append_row({"id": 3})
  assert Workdir(tmp_path, {}).done_ids() == {1, 2}
  del first, second
  with open(tmp_path / "results.jsonl") as other:
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(ValueError, match="is being written by another run"):
      Workdir(tmp_path, {}).append_row({"id": 3})


def test_each_process_has_its_own_rows_and_all_are_merged(tmp_path):
  Workdir(tmp_path, {}).append_row({"id": "alone"})
  for process in (10, 2, 0):
    part = Workdir(tmp_path, {}, process_index=process, process_count=11)
    part.append_row({"id": process})
  workdir = Workdir(tmp_path, {})
  assert [row["id"] for row in workdir.rows()] == ["alone", 0, 2, 10]
  with pytest.raises(ValueError, match="id 10 is already in"):
    workdir.append_row({"id": 10})
  with open(tmp_path / "results-2.jsonl", "a") as file:
    file.write('{"id": 10}\n')
  with pytest.raises(ValueError, match="id 10 is recorded twice"):
    workdir.rows()


# --- The rest of the record ---


def test_only_process_zero_writes_what_there_is_one_of(tmp_path):
  second = Workdir(tmp_path, {}, process_index=1, process_count=2)
  second.metrics(1, loss=2.0)
  second.save_summary({})
  second.record_provenance(devices={})
  second.mark_done()
  assert not second.is_writer and list(tmp_path.iterdir()) == []
  Workdir(tmp_path, {}, process_index=0, process_count=2).mark_done()
  assert second.is_done


def test_a_step_repeated_after_a_restart_counts_once(tmp_path):
  workdir = Workdir(tmp_path, {})
  workdir.metrics(1, loss=3.0)
  workdir.metrics(2, loss=2.0)
  workdir.metrics(2, accuracy=0.5)
  del workdir
  workdir = Workdir(tmp_path, {})
  workdir.metrics(2, loss=1.5)
  found = workdir.read_metrics()
  assert [found[step]["loss"] for step in (1, 2)] == [3.0, 1.5]
  assert found[2]["accuracy"] == 0.5 and found[2]["wall_s"] >= 0
  with pytest.raises(ValueError, match="metrics at step 3: .*nan"):
    workdir.metrics(3, loss=float("nan"))


def test_images_are_written_whole_under_their_name(tmp_path):
  workdir = Workdir(tmp_path, {})
  image = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
  path = workdir.save_image("before/row-1", image)
  assert path == "images/before/row-1.png"
  np.testing.assert_array_equal(Image.open(tmp_path / path), image)
  assert [p.name for p in (tmp_path / "images/before").iterdir()] == [
    "row-1.png"
  ]


@pytest.mark.parametrize("method", ["esd+lora@40 recipe", "a(1)/b", "..", ""])
def test_an_image_may_be_called_after_any_method(method, tmp_path):
  name = called(Guidance("a star", method=method))
  path = Workdir(tmp_path, {}).save_image(
    f"0-{name}", np.zeros((2, 2), np.uint8)
  )
  assert (tmp_path / path).is_file() and pathlib.Path(path).stem == f"0-{name}"
  assert "LORA@40" not in name or name == "ESD+LORA@40"


@pytest.mark.parametrize("name", ["../x", "/x", "", "a//b", "a/../b", ".x"])
def test_image_names_stay_inside(tmp_path, name):
  with pytest.raises(ValueError, match="image name"):
    Workdir(tmp_path, {}).save_image(name, np.zeros((2, 2, 3), np.uint8))


@pytest.mark.parametrize(
  "array", [np.zeros((2, 2, 3)), np.zeros((2, 2, 4), np.uint8)]
)
def test_images_are_uint8_rgb(tmp_path, array):
  with pytest.raises(ValueError, match="must be uint8 of shape"):
    Workdir(tmp_path, {}).save_image("x", array)


def test_a_failed_write_keeps_the_old_file(tmp_path):
  workdir = Workdir(tmp_path, {})
  workdir.save_summary({"value": np.float32(0.5)})
  with pytest.raises(ValueError, match="summary: "):
    workdir.save_summary({"value": np.nan})
  assert json.loads((tmp_path / "summary.json").read_text()) == {"value": 0.5}
  assert {p.name for p in tmp_path.glob("[!.]*")} == {
    "config.json", "summary.json",
  }  # fmt: skip


def test_provenance_lists_every_start(tmp_path, monkeypatch):
  monkeypatch.setattr(
    sys, "orig_argv", ["/bin/py", "-m", "launch.x", "--t=a b"]
  )
  facts = dict(
    devices={"platform": "cpu"},
    base_fingerprint="ab12",
    judge_hashes={"shapes": "cd34"},
    seeds={"noise": 3},
  )
  for _ in range(2):
    Workdir(tmp_path, {}).record_provenance(**facts)
  runs = json.loads((tmp_path / "provenance.json").read_text())["runs"]
  assert len(runs) == 2
  for run in runs:
    assert facts.items() <= run.items()
    assert run["command"] == "python -m launch.x '--t=a b'"
    assert run["versions"]["jax"]
    assert run["started"].endswith("+00:00") and "git_commit" in run


@pytest.mark.parametrize(
  "change",
  [
    {"base_fingerprint": "b"},
    {"judge_hashes": {"shapes": "c"}},
    {"inputs": {"UCE": "d"}},
    {"seeds": {"seed": 1}},
  ],
)
def test_a_resume_on_another_model_or_judge_is_refused(tmp_path, change):
  Workdir(tmp_path, {}).record_provenance(devices={}, base_fingerprint="a")
  before = (tmp_path / "provenance.json").read_bytes()
  facts = {"devices": {}, "base_fingerprint": "a", **change}
  with pytest.raises(
    ValueError, match=f"was started with other {[*change][0]}"
  ):
    Workdir(tmp_path, {}).record_provenance(**facts)
  assert (tmp_path / "provenance.json").read_bytes() == before


def test_an_input_that_older_versions_did_not_record(tmp_path):
  def start(**inputs):
    run = Workdir(tmp_path, {})
    run.record_provenance(devices={}, inputs=inputs, newer=["prompt_table"])

  start(edit="a")
  # It is not held against the first start, but against all after it.
  start(edit="a", prompt_table="b")
  start(edit="a", prompt_table="b")
  for other in ({"edit": "a", "prompt_table": "c"}, {"edit": "a"}):
    with pytest.raises(ValueError, match="inputs.prompt_table: 'b' -> "):
      start(**other)
  with pytest.raises(ValueError, match="inputs.more: '.absent.' -> 'd'"):
    start(edit="a", prompt_table="b", more="d")


# --- The kill ---

# One row for every line of input, so that no load can let it run ahead.
ROWS = """
import sys
from unlearning_jax.record.workdir import Workdir
workdir = Workdir(sys.argv[1], {"rows": 100})
done = workdir.done_ids()
for i in range(100):
  if i not in done:
    sys.stdin.readline()
    workdir.append_row({"id": i, "square": i * i, "text": "x" * 50_000})
    print(i, flush=True)
workdir.mark_done()
"""


def start_rows(folder, inputs):
  process = subprocess.Popen(
    [sys.executable, "-c", ROWS, str(folder)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  )
  process.stdin.write(b"\n" * inputs)
  process.stdin.flush()
  return process


def test_killed_ten_times_the_rows_are_those_of_an_undisturbed_run(tmp_path):
  calm = start_rows(tmp_path / "calm", 100)
  chance = random.Random(0)
  for _ in range(10):
    process = start_rows(tmp_path / "killed", 9)
    for _ in range(chance.randint(1, 6)):
      assert process.stdout.readline()
    time.sleep(chance.uniform(0, 0.003))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
  found = len(list(JsonLines(tmp_path / "killed/results.jsonl").read()))
  assert 10 <= found <= 90
  assert not (tmp_path / "killed/DONE").exists()
  assert start_rows(tmp_path / "killed", 100).wait() == 0
  assert calm.wait() == 0
  rows = (tmp_path / "calm/results.jsonl").read_bytes()
  assert (tmp_path / "killed/results.jsonl").read_bytes() == rows
  assert (tmp_path / "killed/DONE").exists()


def test_lines_torn_at_every_byte_are_redone(tmp_path):
  file = tmp_path / "lines.jsonl"
  whole = b'{"id": 1}\n{"id": 2}\n'
  for length in range(len(whole) + 1):
    file.write_bytes(whole[:length])
    lines = JsonLines(file)
    kept = len(list(lines.read()))
    for i in range(kept + 1, 3):
      lines.append({"id": i}, what="row")
    assert file.read_bytes() == whole
    del lines
