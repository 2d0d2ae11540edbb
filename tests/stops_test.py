"""A run that is told to stop keeps what it has, and goes on."""

import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.finetune import loop_test
from unlearning_jax import checkpoints, finetune, sharding, stops
from unlearning_jax.record import progress

# Says that it works, then waits.
WAITS = """
import sys, time
from unlearning_jax import stops
stops.listen()
try:
  with stops.finishing():
    print("ready", flush=True)
    time.sleep(float(sys.argv[1]))
    print("finished", stops.asked(1), flush=True)
  time.sleep(60)
finally:
  print("left", flush=True)
"""

# Kills itself while Python ends, when its handlers are off already.
ENDS = """
import os
from unlearning_jax import stops

class Late:
  def __del__(self, kill=os.kill, process=os.getpid()):
    kill(process, {number})

late = Late()
stops.listen()
{ended}
"""


@pytest.fixture(autouse=True)
def untold(monkeypatch):
  monkeypatch.setattr(stops._Notice, "heard", False)
  before = {number: signal.getsignal(number) for number in stops.SIGNALS}
  yield
  for number, handler in before.items():
    signal.signal(number, handler)


def waiting(seconds):
  process = subprocess.Popen(
    [sys.executable, "-c", WAITS, str(seconds)], stdout=subprocess.PIPE,
    text=True,
  )  # fmt: skip
  assert process.stdout.readline() == "ready\n"
  return process


@pytest.mark.parametrize("number", stops.SIGNALS)
def test_a_signal_lets_the_step_in_flight_finish(number):
  process = waiting(0.5)
  process.send_signal(number)
  output, _ = process.communicate(timeout=30)
  assert output == "finished True\nleft\n"
  assert process.returncode == stops.STATUS == 75


def test_between_steps_it_stops_at_once():
  process = waiting(0)
  assert process.stdout.readline() == "finished False\n"
  process.send_signal(signal.SIGTERM)
  assert process.communicate(timeout=30)[0] == "left\n"
  assert process.returncode == 75


def test_a_second_signal_ends_the_process():
  process = waiting(60)
  process.send_signal(signal.SIGTERM)
  while process.poll() is None:
    process.send_signal(signal.SIGTERM)
  assert process.communicate()[0] == ""
  assert process.returncode == -signal.SIGTERM


@pytest.mark.parametrize("number", stops.SIGNALS)
def test_a_signal_to_a_run_that_has_ended_changes_nothing(number):
  """The signal comes when Python takes its modules down."""
  for ended, status in (("", -number), ("stops.ended()", 0)):
    code = ENDS.format(number=int(number), ended=ended)
    assert subprocess.run([sys.executable, "-c", code]).returncode == status


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_python_loses_stops_after_the_row():
  class Gone:
    def __del__(self):
      signal.raise_signal(signal.SIGTERM)

  stops.listen()
  made = Gone()
  del made  # What a destructor raises is ignored.
  with pytest.raises(stops.Stopped):
    progress.Progress("draw", 2, quiet=True).update()


def trained(folder, stop_at=None, num_steps=loop_test.STEPS):
  """Trains from the folder's checkpoint; a signal arrives in a step."""
  tx = finetune.optimizer(0.1, loop_test.STEPS)
  state = finetune.init_state(loop_test.params(), tx)
  if checkpoints.latest_step(folder):
    state = checkpoints.restore(folder, state)

  class Data:
    def __getitem__(self, step):
      if step + 1 == stop_at:
        os.kill(os.getpid(), signal.SIGTERM)
      return loop_test.batches()[step]

  return finetune.train(
    state, finetune.make_step(loop_test.loss, tx, 0.9),
    {"sigma": np.float32(0.1)}, Data(), jax.random.key(1),
    mesh=sharding.make_mesh(devices=jax.devices()[:1]), num_steps=num_steps,
    watch=finetune.Watch(
      on_stop=lambda *stopped: checkpoints.save_new(folder, *stopped)
    ),
  )  # fmt: skip


@pytest.mark.parametrize("stop_at", [1, 7, loop_test.STEPS])
def test_training_keeps_the_step_in_flight(tmp_path, stop_at):
  whole = trained(tmp_path / "whole")
  stops.listen()
  with pytest.raises(stops.Stopped):
    trained(tmp_path / "cut", stop_at)
  assert checkpoints.latest_step(tmp_path / "cut") == stop_at
  stops._Notice.heard = False
  jax.tree.map(np.testing.assert_array_equal, trained(tmp_path / "cut"), whole)


def test_no_signal_no_checkpoint(tmp_path):
  trained(tmp_path)
  assert checkpoints.latest_step(tmp_path) is None
