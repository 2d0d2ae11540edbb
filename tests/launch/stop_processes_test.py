"""Two processes are stopped while one waits for the other."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.support import scripts
from unlearning_jax import processes, stops

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


def test_a_process_that_waits_for_another_hears_a_signal():
  # The tests' server forks, and a fork does not end as a process does.
  running = [
    subprocess.Popen(
      [sys.executable, "-m", __name__], stdout=subprocess.PIPE, text=True,
      env={**os.environ, **more}, cwd=scripts.ROOT,
    )
    for more in scripts.slurm(2, 1)
  ]  # fmt: skip
  for process in running:
    assert "ready\n" in iter(process.stdout.readline, "")
  time.sleep(0.5)
  for process in running:
    process.send_signal(signal.SIGTERM)
  assert [one.wait(15) for one in running] == [stops.STATUS] * 2


if __name__ == "__main__":
  processes.initialize_distributed(True)
  stops.listen()
  processes.wait_for_all("ready")
  print("ready", flush=True)
  if os.environ["SLURM_PROCID"] == "1":
    processes.wait_for_all("never")
  time.sleep(60)
