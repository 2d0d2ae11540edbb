"""One run, however many devices and processes share it: the same rows.

The launch scripts are started as SLURM would start them, so that their bare
`jax.distributed.initialize()` finds its peers; once by `launch.local`.
"""

import json
import os
import shutil
import time

import numpy as np
import pytest

from tests.support import scripts
from unlearning_jax.edits import load_edit

# Rows that neither the batch nor the processes divide: 13 of each model.
SMALL = [
  "--config.rows_per_group=2",
  "--config.other_rows=7",
  "--config.grid_rows=1",
  "--config.batch_size=2",
  "--config.sampling.num_inference_steps=2",
]

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


def launch(script, flags, small=SMALL, **shape):
  scripts.run_all(scripts.start(script, [*flags, *small], **shape))


def rows(workdir):
  """All rows by id; none is recorded twice."""
  found = {}
  for file in workdir.glob("results*.jsonl"):
    # A killed process leaves a line without an end.
    for line in file.read_text().split("\n")[:-1]:
      row = json.loads(line)
      assert row["id"] not in found
      found[row["id"]] = row
  return found


def check(workdir, expected):
  """The run is complete and its rows are those of one device.

  A pixel of an image may be rounded to its neighbour: scores tell that.
  """
  found = rows(workdir)
  assert found.keys() == expected.keys()
  for name, row in expected.items():
    assert found[name] | {"scores": None} == row | {"scores": None}
    for head, scores in row["scores"].items():
      np.testing.assert_allclose(
        found[name]["scores"][head], scores, rtol=0.02, atol=1e-4
      )
  assert (workdir / "DONE").exists()
  assert (workdir / "report.html").exists()
  provenance = json.loads((workdir / "provenance.json").read_text())
  return provenance["runs"][-1]["devices"]


@pytest.fixture(scope="module")
def erased(tmp_path_factory):
  """An erase run on one device, and its rows."""
  folder = tmp_path_factory.mktemp("processes") / "uce"
  launch("erase", ["--config=configs/erase_uce.py:tiny", f"--workdir={folder}"])
  return folder, rows(folder)


def evaluation(workdir, erased):
  return [
    "--config=configs/evaluate_shapes.py:tiny,task=object,name=star",
    f"--edits={erased}",
    f"--workdir={workdir}",
  ]


@pytest.fixture(scope="module")
def evaluated(erased, tmp_path_factory):
  """The rows of an evaluation on one device."""
  folder = tmp_path_factory.mktemp("processes") / "one"
  launch("evaluate", evaluation(folder, erased[0]))
  found = rows(folder)
  assert len(found) == 2 * 13
  assert len({json.dumps(row["judged"]) for row in found.values()}) > 5
  return found


@pytest.mark.parametrize("processes, devices", [(1, 8), (2, 1), (2, 4)])
def test_evaluate(processes, devices, erased, evaluated, tmp_path):
  shape = {"processes": processes, "devices": devices}
  flags = evaluation(tmp_path, erased[0])
  if devices == 4:
    scripts.run(
      "local", *(f"--{key}={n}" for key, n in shape.items()),
      f"--logs={tmp_path}/.logs", "--", "evaluate", *flags, *SMALL,
      env={"XLA_FLAGS": os.environ["XLA_FLAGS"]},
    ).finish()  # fmt: skip
  else:
    launch("evaluate", flags, **shape)
  described = check(tmp_path, evaluated)
  # Each process drew its share.
  assert len(list(tmp_path.glob("results*.jsonl"))) == processes
  assert described["process_count"] == processes
  assert described["count"] == processes * devices


def test_erase_in_two_processes(erased, tmp_path):
  flags = ["--config=configs/erase_uce.py:tiny", f"--workdir={tmp_path}"]
  launch("erase", flags, processes=2, devices=4)
  check(tmp_path, erased[1])
  one, two = (
    load_edit(folder / "edit.safetensors") for folder in (erased[0], tmp_path)
  )
  np.testing.assert_array_equal(one.context_map, two.context_map)
  assert (one.base, one.concepts) == (two.base, two.concepts)


def test_a_list_in_two_processes(tmp_path):
  (tmp_path / "list.txt").write_text("star\nheart\n")
  edits = []
  # The second time from the cache.
  for i, processes in enumerate((2, 2, 1)):
    flags = [
      "--model=shapes", f"--erase={tmp_path / 'list.txt'}", "--anchor=circle",
      f"--cache={tmp_path / 'cache'}", f"--output={tmp_path / str(i)}",
    ]  # fmt: skip
    launch("erase_list", flags, small=[], processes=processes, devices=2)
    edits.append(load_edit(tmp_path / str(i)).context_map)
  assert len(list((tmp_path / "cache").iterdir())) == 1
  for edit in edits[1:]:
    np.testing.assert_allclose(edit, edits[0], rtol=0, atol=1e-12)


@pytest.fixture(scope="module")
def killed(erased, tmp_path_factory):
  """The folder that two killed processes left, a part of its rows in it."""
  folder = tmp_path_factory.mktemp("processes") / "killed"
  flags = [*evaluation(folder, erased[0]), *SMALL]
  started = scripts.start("evaluate", flags, processes=2, devices=4)
  deadline = time.monotonic() + scripts.TIMEOUT
  while not rows(folder):
    assert time.monotonic() < deadline
    assert all(process.returncode is None for process in started)
    time.sleep(0.02)
  for process in started:
    process.kill()
  return folder


# As many devices as in `test_evaluate`: the programs are compiled.
@pytest.mark.parametrize("resumed_by, devices", [(2, 4), (1, 8)])
def test_killed_and_resumed(
  resumed_by, devices, killed, erased, evaluated, tmp_path
):
  folder = shutil.copytree(killed, tmp_path / "run")
  assert 0 < len(rows(folder)) < len(evaluated)
  flags = evaluation(folder, erased[0])
  launch("evaluate", flags, processes=resumed_by, devices=devices)
  check(folder, evaluated)


def test_asked_to_stop(erased, evaluated, tmp_path):
  """All stop after a row, and the same command goes on."""
  flags = [*evaluation(tmp_path, erased[0]), *SMALL]
  assert stopped("evaluate", flags, lambda: rows(tmp_path)) == [75, 75]
  assert 0 < len(rows(tmp_path)) < len(evaluated)
  launch("evaluate", flags, small=[], devices=8)
  check(tmp_path, evaluated)


def test_an_audit_is_asked_to_stop(erased, tmp_path):
  """It hears in a stage that trains nothing."""
  flags = [
    "--protocol=shapes-star~rows_per_group=2,other_rows=7,steps=2",
    f"--edits={erased[0]}", "--batch_size=2", f"--workdir={tmp_path}",
  ]  # fmt: skip
  stage = tmp_path / "evaluate"
  assert stopped("audit", flags, lambda: rows(stage)) == [75, 75]
  assert rows(stage) and not (stage / "DONE").exists()


def stopped(script, flags, begun):
  """Asks two processes to stop once they have begun; their statuses."""
  running = scripts.start(script, flags, processes=2, devices=4)
  deadline = time.monotonic() + scripts.TIMEOUT
  while not begun():
    assert time.monotonic() < deadline
    assert all(process.returncode is None for process in running)
    time.sleep(0.02)
  for process in running:
    process.ask()
  return [process.join().returncode for process in running]
