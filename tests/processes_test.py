"""How processes find each other and end."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from unittest import mock

import jax
import pytest

from unlearning_jax import processes, stops

# Takes its index from the environment; what it is called is its own. The others
# of one that fails end a quarter as late as a script's do.
JOIN = """
import sys
from unlearning_jax import processes
processes.SHUTDOWN_S = 5
processes.initialize_distributed(True)
import jax
if sys.argv[1:] == ["fails"] and jax.process_index() == 1:
  sys.exit("process 1: error: the disk is full")
processes.wait_for_all("ended")
"""


# Process 1 works row by row, and the others wait for it.
WORK = """
import sys, time
from unlearning_jax import processes, stops
shared = sys.argv[1] == "shared"
processes.initialize_distributed(True, polled=shared)
stops.listen(shared=shared)
import jax
try:
  print("ready", flush=True)
  while jax.process_index() == 1:
    time.sleep(0.05)
    stops.check()
  processes.wait_for_all("rows")
except stops.Stopped:
  processes.say_stopped()
  raise
"""


# A stage of an audit fails in process 0 alone; process 1 waits within it.
STAGE = """
import pathlib, sys
from unlearning_jax import processes
processes.initialize_distributed(True)
import jax
from unlearning_jax.experiments import cells

def work(some):
  if jax.process_index() == 0:
    raise ValueError("a row of its own")
  processes.wait_for_all("rows attacked")

cells.run(
  cells.Folders(pathlib.Path(sys.argv[1])), ["stage"], work,
  after=lambda: processes.wait_for_all("stage ended"),
)
"""


# A stage of steps that both share fails in process 1 alone; process 0 waits in
# a collective, which hears nothing.
STEPS = """
import pathlib, sys
from unlearning_jax import processes
processes.initialize_distributed(True)
import jax, numpy as np
from jax.experimental import multihost_utils
from unlearning_jax.experiments import cells

def work(some):
  try:
    with processes.together(True):
      for step in range(4):
        if jax.process_index() == 1 and step == 2:
          raise ValueError("a batch of its own")
        multihost_utils.process_allgather(np.float32(step))
  except ValueError as error:
    processes.say_failed(error)
    raise

try:
  cells.run(
    cells.Folders(pathlib.Path(sys.argv[1])), ["stage"], work,
    after=lambda: processes.wait_for_all("stage ended"),
  )
except OSError as error:
  processes.say_failed(error, leaves=True)
  sys.exit(f"error: {error}")
"""


def test_the_others_end_soon_after_one_that_fails():
  assert 10 <= processes.STUCK_S < processes.SHUTDOWN_S
  assert processes.SHUTDOWN_S <= 30


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
  for name in (*processes._TOLD, "JAX_COORDINATOR_PORT"):
    monkeypatch.delenv(name, raising=False)


def test_distributed_runs_only_when_asked_and_is_never_swallowed(monkeypatch):
  def fail(**_):
    raise RuntimeError("no coordinator")

  monkeypatch.setattr(jax.distributed, "initialize", fail)
  processes.initialize_distributed(False)
  with pytest.raises(RuntimeError, match="no coordinator"):
    processes.initialize_distributed(True)
  alone = mock.Mock(side_effect=ValueError("address should be defined."))
  monkeypatch.setattr(jax.distributed, "initialize", alone)
  with pytest.raises(
    ValueError, match="defined. On SLURM .*--coordinator=host"
  ):
    processes.initialize_distributed(True)
  monkeypatch.setenv("JAX_PROCESS_ID", "first")
  with pytest.raises(ValueError, match="JAX_PROCESS_ID='first': must be a num"):
    processes.initialize_distributed(True)


def test_whoever_is_told_the_coordinator_looks_for_no_cluster(monkeypatch):
  seen = {}
  monkeypatch.setattr(jax.distributed, "initialize", seen.update)
  monkeypatch.setenv("JAX_NUM_PROCESSES", "1")
  processes.initialize_distributed(True)
  assert seen["cluster_detection_method"] is None
  monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
  monkeypatch.setenv("JAX_PROCESS_ID", "0")
  processes.initialize_distributed(True)
  assert seen["cluster_detection_method"] == "deactivate"
  assert seen["process_id"] == 0 and seen["num_processes"] == 1


def test_a_coordinator_is_named_by_hand(monkeypatch):
  seen = {}
  monkeypatch.setattr(jax.distributed, "initialize", seen.update)
  # `setenv` restores what is changed past it.
  for name in processes._TOLD:
    monkeypatch.setenv(name, "0")
  processes.name_coordinator("[::1]:8476,4,3")
  assert os.environ["JAX_COORDINATOR_ADDRESS"] == "[::1]:8476"
  processes.initialize_distributed(True)
  assert seen["cluster_detection_method"] == "deactivate"
  assert seen["process_id"] == 3 and seen["num_processes"] == 4
  for wrong in ("node0,2,0", "node0:8476,2", "node0:8476,2,2", "a:1,2,x"):
    with pytest.raises(ValueError, match=r"--coordinator='.*host:port,n,i"):
      processes.name_coordinator(wrong)


def test_the_mark_of_a_run_leaves_out_which_process_it_is(monkeypatch):
  marks = []
  for word in ("node0:84,2,0", "node0:84,2,1", "node1:84,2,0"):
    monkeypatch.setattr(sys, "argv", ["erase", f"--coordinator={word}"])
    marks.append(processes._mark())
  assert marks[0] == marks[1] != marks[2]


def test_each_step_of_a_slurm_job_has_its_own_port(monkeypatch):
  monkeypatch.setattr(jax.distributed, "initialize", lambda **_: None)
  monkeypatch.setenv("SLURM_JOB_ID", "8199")
  ports = set()
  for step in range(20):
    monkeypatch.delenv("JAX_COORDINATOR_PORT", raising=False)
    monkeypatch.setenv("SLURM_STEP_ID", str(step))
    processes.initialize_distributed(True)
    ports.add(int(os.environ["JAX_COORDINATOR_PORT"]))
  assert len(ports) == 20 and min(ports) >= 61440 and max(ports) < 65536
  # A port that is given stays.
  monkeypatch.setenv("JAX_COORDINATOR_PORT", "5000")
  processes.initialize_distributed(True)
  assert os.environ["JAX_COORDINATOR_PORT"] == "5000"


class Coordinator(dict):
  """What the processes say to each other; nobody says more."""

  looks = 0

  def key_value_set(self, key, value, allow_overwrite=False):
    assert allow_overwrite or key not in self
    self[key] = value

  def key_value_dir_get(self, prefix):
    self.looks += 1
    assert self.looks < 20, "it waits for ever"
    return sorted((k, v) for k, v in self.items() if k.startswith(prefix))


@pytest.fixture
def coordinator(monkeypatch):
  """That of eleven processes; this one is the last to come."""
  found = Coordinator()
  monkeypatch.setattr(processes, "_coordinator", lambda: found)
  monkeypatch.setattr(processes, "_BARRIERS", itertools.count(3))
  monkeypatch.setattr(stops._Notice, "heard", False)
  monkeypatch.setattr(jax, "process_count", lambda: 11)
  monkeypatch.setattr(jax, "process_index", lambda: 10)
  for index in range(10):
    said = json.dumps(["rows", f"word {index}"])
    found[f"{processes._KEY}/3/{index}"] = said
  return found


def test_processes_say_words_to_each_other(coordinator):
  words = processes.wait_for_all("rows", "word 10")
  assert words == [f"word {index}" for index in range(11)]


@pytest.mark.parametrize("here", [1, 10])
def test_processes_that_wait_at_other_places_do_not_wait(coordinator, here):
  """A stage that failed in one process alone: the others are within it."""
  for index in range(here, 10):
    del coordinator[f"{processes._KEY}/3/{index}"]
  coordinator[f"{processes._KEY}/3/0"] = json.dumps(["stage ended", ""])
  with pytest.raises(
    processes.PartedError, match="10 waits at 'rows', and process 0 at 'stage e"
  ):
    processes.wait_for_all("rows")


def test_one_that_stops_does_not_announce_itself(coordinator, monkeypatch):
  """The last to come, it would have gone on, or the others without it."""
  before = dict(coordinator)
  monkeypatch.setattr(stops._Notice, "heard", True)
  with pytest.raises(stops.Stopped):
    processes.wait_for_all("rows")
  assert coordinator == before


def test_the_last_to_come_looks_for_one_that_has_stopped(coordinator):
  coordinator[f"{processes._STOPPED}4"] = "stopped"
  with pytest.raises(stops.Stopped):
    processes.wait_for_all("rows")


def test_one_that_waits_hears_of_one_that_failed(coordinator, monkeypatch):
  """It says its error, as the other's log may lie on another machine."""
  del coordinator[f"{processes._KEY}/3/4"]
  with monkeypatch.context() as other:
    other.setattr(jax, "process_index", lambda: 4)
    processes.say_failed(ValueError("the disk is odd"), leaves=True)
  with pytest.raises(
    processes.PartedError, match="process 4 failed: ValueError: the disk is odd"
  ):
    processes.wait_for_all("rows")


@pytest.mark.parametrize(
  "together, at, ends",
  [
    # In steps that all share, or where the other has left.
    (True, 6, True),
    (False, processes._LEFT, True),
    # In work of its own it comes to the wait; one that it has passed is over.
    (False, 6, False),
    (True, 5, False),
  ],
)
def test_a_process_that_waits_for_one_that_failed_ends(
  together, at, ends, coordinator, monkeypatch
):
  said = []

  class Looks(threading.Event):
    """It looks twenty times, a second each."""

    count = 0

    def wait(self, timeout=None):
      self.count += 1
      return self.count > 20 or bool(said)

  looks = Looks()
  coordinator[f"{processes._FAILED}{at}/4"] = json.dumps("ValueError: odd")
  monkeypatch.setattr(Coordinator, "looks", -100)
  monkeypatch.setattr(processes._Here, "wait", 5)
  monkeypatch.setattr(processes._Here, "together", together)
  monkeypatch.setattr(processes.time, "monotonic", lambda: 1.0 + looks.count)
  monkeypatch.setattr(processes, "_end", lambda *found: said.append(found))
  processes._watch(coordinator, 10, looks)
  assert said == ([(10, 4, "ValueError: odd")] if ends else [])
  assert not ends or looks.count == processes.STUCK_S + 2


def started(script, *commands):
  """Starts one process of a script for each command line."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  told = {"JAX_COORDINATOR_ADDRESS": address}
  told["JAX_NUM_PROCESSES"] = str(len(commands))
  return [
    subprocess.Popen(
      [sys.executable, "-c", script, *command],
      env={**os.environ, **told, "JAX_PROCESS_ID": str(i)},
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    for i, command in enumerate(commands)
  ]  # fmt: skip


def joined(*commands):
  """What processes of `JOIN` end with: statuses and errors."""
  running = started(JOIN, *commands)
  errors = [process.communicate(timeout=120)[1] for process in running]
  return [process.returncode for process in running], errors


@pytest.mark.multiprocess
def test_a_process_of_another_run_is_refused():
  statuses, errors = joined(["--workdir=a"], ["--workdir=b"])
  assert all(statuses)
  for error in errors:
    assert "process 1 joined with another command" in error


@pytest.mark.slow
@pytest.mark.multiprocess
def test_the_error_of_one_process_soon_ends_all():
  start = time.monotonic()
  statuses, errors = joined(["fails"], ["fails"])
  assert all(statuses)
  assert errors[1].startswith("process 1: error: the disk is full")
  # JAX's own default is five minutes.
  assert time.monotonic() - start < 90


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_stage_that_fails_in_one_process_ends_all(tmp_path):
  running = started(STAGE, [str(tmp_path)], [str(tmp_path)])
  errors = [process.communicate(timeout=120)[1] for process in running]
  assert [process.returncode for process in running] == [1, 1], errors
  assert "waits at 'stage ended', and process 1 at 'rows att" in errors[0]
  assert "waits at 'rows attacked', and process 0 at 'stage e" in errors[1]
  failed = (tmp_path / "stage" / "failed.txt").read_text()
  assert failed.strip().endswith("ValueError: a row of its own")


@pytest.mark.slow
@pytest.mark.multiprocess
def test_steps_that_fail_in_one_process_end_all(tmp_path):
  """They hung for ever: the one in a collective, the other where it waits."""
  start = time.monotonic()
  running = started(STEPS, [str(tmp_path)], [str(tmp_path)])
  errors = [process.communicate(timeout=120)[1] for process in running]
  assert [process.returncode for process in running] == [1, 1], errors
  # Two starts take seconds of it.
  assert time.monotonic() - start < 60
  words = "process 1 failed, and this one waits for it: ValueError: a batch of "
  assert f"process 0: error: {words}" in errors[0]
  assert "Fatal" not in errors[0] + errors[1]
  own, theirs = (errors[1].index(x) for x in ("ValueError: a b", "error: proc"))
  assert own < theirs


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("aimed", [(0, 1), (1,)])
@pytest.mark.parametrize("how", ["alone", "shared"])
def test_a_process_that_waits_hears_of_a_stop(how, aimed):
  """Its own, or that of the process that it waits for."""
  running = started(WORK, [how], [how])
  for process in running:
    # JAX's collectives say something too.
    assert "ready\n" in iter(process.stdout.readline, "")
  time.sleep(1)
  for index in aimed:
    running[index].send_signal(signal.SIGTERM)
  errors = [process.communicate(timeout=60)[1] for process in running]
  assert [process.returncode for process in running] == [75, 75], errors
