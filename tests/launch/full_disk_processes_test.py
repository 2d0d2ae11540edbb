"""One process of two cannot write: both end soon, and it says why first."""

import os
import resource
import signal
import sys
import time

import numpy as np
import pytest
from absl.flags import DEFINE_string

from tests.support import scripts

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


def test_the_full_disk_of_one_process_ends_both(tmp_path):
  first, other = scripts.start(
    __name__, [f"--folder={tmp_path}"], processes=2, quick=True
  )
  deadline = time.monotonic() + 60
  while other.returncode is None and "error" not in other.stderr:
    assert time.monotonic() < deadline
    time.sleep(0.1)
  assert first.returncode is None
  for run in (first, other):
    assert run.join(90).returncode != 0
  assert "process 1: error: " in other.stderr, other.stderr
  assert "File too large" in other.stderr and not list(tmp_path.glob("1/*"))


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

  os.environ["JAX_PROCESS_ID"] = os.environ["SLURM_PROCID"]
  _FOLDER = DEFINE_string("folder", None, "Where both save.")
  flags.processes()
  sys.exit(flags.run(main, polled=True))
