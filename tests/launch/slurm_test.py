"""A job of a real SLURM, where there is one."""

import shutil
import subprocess
import sys
import time

import pytest
from unlearning_jax.launch import slurm

from tests.launch.processes_test import rows
from tests.support import scripts

pytestmark = [
  pytest.mark.slow,
  pytest.mark.multiprocess,
  pytest.mark.skipif(
    not shutil.which("sbatch")
    or subprocess.run(["sinfo"], capture_output=True).returncode != 0,
    reason="there is no SLURM here",
  ),
]
RUN = [
  "evaluate", "--config=evaluate_shapes:tiny,task=object,name=star",
  "--config.rows_per_group=2", "--config.other_rows=6",
  "--config.batch_size=2", "--config.sampling.num_inference_steps=2",
]  # fmt: skip


# Fails where a process of the other step has joined.
STEP = """
import sys, zlib
import numpy as np
from jax.experimental import multihost_utils
from unlearning_jax import processes
processes.initialize_distributed(True)
own = np.uint32(zlib.crc32(sys.argv[1].encode()))
found = multihost_utils.process_allgather(own)
assert found.tolist() == [own, own], found
processes.wait_for_all("ended")
"""
STEPS = """
for step in a b; do
  srun -n2 --exact "$0" -c "$1" $step & pids="$pids $!"
done
for pid in $pids; do wait $pid || exit; done
"""


def call(*command):
  return subprocess.run(
    command, capture_output=True, text=True, check=True
  ).stdout


def wait(reached):
  deadline = time.monotonic() + scripts.TIMEOUT
  while not reached():
    assert time.monotonic() < deadline
    time.sleep(0.2)


def test_a_job_that_is_stopped_goes_on(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
  run = tmp_path / "run"
  job = slurm.submit(
    slurm.script(
      slurm.Job(tasks_per_node=2), [*RUN, f"--workdir={run}"]
    )
  )  # fmt: skip
  try:
    wait(lambda: rows(run))
    # As SLURM does before the limit of a job's time.
    call("scancel", "--batch", "--signal=USR2", job)
    state = ("squeue", "--noheader", f"--job={job}", "--format=%T %r")
    wait(lambda: call(*state).strip() == "PENDING BeginTime")
    had = len(rows(run))
    call("scontrol", "update", f"JobId={job}", "StartTime=now")
    wait(lambda: (run / "DONE").exists())
  finally:
    subprocess.run(["scancel", job])
  assert 0 < had < len(rows(run)) == 12
  assert {file.name for file in run.glob("results-*.jsonl")} == {
    "results-0.jsonl", "results-1.jsonl"
  }  # fmt: skip
  (log,) = tmp_path.glob("evaluate-*.log")
  assert "stopped; the same command goes on" in log.read_text()


def test_two_steps_that_start_at_once_stay_apart():
  call("salloc", "-n4", "bash", "-c", STEPS, sys.executable, STEP)
