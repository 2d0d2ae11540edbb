"""The processes of one machine: all start, and all end together."""

import os
import signal
import sys
import threading
import time

import pytest
from unlearning_jax.launch import local

# Says what it was given, and ends as its index is asked to.
WORK = """
import os, signal, sys, time
print(os.environ["JAX_NUM_CPU_DEVICES"], "devices", flush=True)
index = int(os.environ.get("JAX_PROCESS_ID", 0))
signal.signal(signal.SIGINT, lambda *_: sys.exit(75))
open(f"ready-{index}", "w").close()
status = sys.argv[1 + index]
if status == "stay":
  time.sleep(60)
if status == "killed":
  os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(status))
"""


def run(*statuses):
  command = [sys.executable, "-c", WORK, *map(str, statuses)]
  added = local.environments(len(statuses), 4)
  return local.run(command, added, local.pathlib.Path("logs"))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  return tmp_path


def test_each_process_has_its_devices_and_the_same_coordinator():
  (alone,) = local.environments(1, 8)
  assert alone == {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
  one, two = local.environments(2, 4, "gpu")
  assert one["JAX_CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
  assert two["JAX_CUDA_VISIBLE_DEVICES"] == "4,5,6,7"
  assert one["JAX_COORDINATOR_ADDRESS"] == two["JAX_COORDINATOR_ADDRESS"]
  assert (one["JAX_PROCESS_ID"], two["JAX_PROCESS_ID"]) == ("0", "1")


@pytest.mark.parametrize("statuses, status", [((0, 0), 0), ((0, 3, 4), 4)])
def test_a_good_end_is_waited_for(statuses, status, folder, capfd):
  assert run(*statuses) == status
  logs = sorted(folder.glob("logs/*.log"))
  assert [log.name for log in logs] == [
    f"process-{i}.log" for i in range(len(statuses))
  ]
  assert {log.read_text() for log in logs} == {"4 devices\n"}
  # The first is shown too.
  assert capfd.readouterr().out == "4 devices\n"


def test_one_failure_ends_all(capfd):
  start = time.monotonic()
  assert run("stay", 5, "stay") == 5
  assert time.monotonic() - start < 20
  error = capfd.readouterr().err
  now, *_, last, log = error.splitlines()
  assert now == "process 1 ended with status 5; the others are to stop"
  assert last == (
    "the first to fail: process 1 ended with status 5; see logs/process-1.log"
  )
  assert log == "  4 devices"


def test_the_one_that_was_killed_is_named_last(capfd):
  """JAX aborts the others, which say so at length and have another status."""
  assert run("stay", "killed") == 137
  last = capfd.readouterr().err.splitlines()[-2]
  assert last.startswith(
    "the first to fail: process 1 was killed by signal 9 ("
  )


def test_whoever_does_not_end_is_killed(monkeypatch):
  monkeypatch.setattr(local, "GRACE_S", 0.5)
  deaf = WORK.replace(
    "SIGINT, lambda *_: sys.exit(75)", "SIGTERM, lambda *_: 0"
  )
  monkeypatch.setitem(globals(), "WORK", deaf)
  start = time.monotonic()
  assert run(5, "stay") == 5
  assert time.monotonic() - start < 20


def test_ctrl_c_stops_all_once(folder):
  def interrupt():
    while len([*folder.glob("ready-*")]) < 2:
      time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGINT)

  before = signal.getsignal(signal.SIGINT)
  threading.Thread(target=interrupt).start()
  assert run("stay", "stay") == 75
  assert signal.getsignal(signal.SIGINT) == before


def test_a_second_ctrl_c_ends_whoever_does_not_hear(folder, monkeypatch):
  deaf = WORK.replace("lambda *_: sys.exit(75)", "signal.SIG_IGN")
  monkeypatch.setitem(globals(), "WORK", deaf)

  def interrupt():
    while len([*folder.glob("ready-*")]) < 2:
      time.sleep(0.02)
    for _ in range(2):
      os.kill(os.getpid(), signal.SIGINT)
      time.sleep(0.2)

  threading.Thread(target=interrupt).start()
  assert run("stay", "stay") == 137


def test_a_closed_output_blocks_nobody(folder, monkeypatch):
  class Closed:
    def write(self, text):
      raise BrokenPipeError

  monkeypatch.setattr(local.sys, "stdout", Closed())
  assert run(0, 3) == 3
  assert "4 devices" in (folder / "logs/process-0.log").read_text()
