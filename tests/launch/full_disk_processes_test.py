"""One process of two cannot write: both end soon, and it says why first."""

import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
from absl.flags import DEFINE_string

from tests.support import scripts

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


def test_the_full_disk_of_one_process_ends_both(tmp_path):
  command = [sys.executable, "-m", __name__, "--distributed"]
  # The tests' server forks, and a fork does not end as a process does.
  first, other = (
    subprocess.Popen(
      [*command, f"--folder={tmp_path}"], stderr=subprocess.PIPE, text=True,
      env={**os.environ, **more, "JAX_PROCESS_ID": more["SLURM_PROCID"]},
      cwd=scripts.ROOT,
    )
    for more in scripts.slurm(2, 1)
  )  # fmt: skip
  said = next(line for line in other.stderr if "error: " in line)
  assert said.startswith("process 1: error: ") and "File too large" in said
  assert first.poll() is None
  for process in (first, other):
    process.communicate(timeout=90)
    assert process.returncode != 0
  assert not [*tmp_path.glob("1/*")]


def main(_):
  """Both save an array that they share; one may not write large files."""
  import jax

  from unlearning_jax import checkpoints, sharding

  mesh = sharding.make_mesh()
  rows = np.random.default_rng(jax.process_index()).normal(size=(1, 10**6))
  shared = sharding.global_batch(mesh, rows.astype(np.float32))
  if jax.process_index() == 1:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))
  checkpoints.save(_FOLDER.value, 1, {"rows": shared})


if __name__ == "__main__":
  from unlearning_jax.launch import flags

  _FOLDER = DEFINE_string("folder", None, "Where both save.")
  flags.processes()
  flags.run(main, polled=True)
