"""Twenty steps of tuning: two processes of four devices, and one device.

Each process is this file run as a script, started as SLURM would start it.
"""

import functools
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from unlearning_jax import finetune, sharding, stable_diffusion
from unlearning_jax.data import Batches

TESTS = pathlib.Path(__file__).resolve().parent
STEPS, ROWS = 20, 8
SHAPES = [(8, 1), (4, 2), (1, 8)]


def model(folder):
  """The tests' own model, with everything that a step may do."""
  sys.path.insert(0, str(TESTS))
  from stable_diffusion_test import make_files

  sd, params = stable_diffusion.from_files(make_files(folder))
  images = np.random.default_rng(0).integers(0, 256, (24, 12, 8, 3), np.uint8)
  rows = finetune.encode_examples(sd, params, images, ["a b", "c", "d e"] * 8)
  return sd, params, rows


class Share:
  """One process's part of every batch: together they are the whole batch."""

  def __init__(self, rows, index, count):
    self.batches = Batches(rows, ROWS, seed=3)
    self.part = slice(index * ROWS // count, (index + 1) * ROWS // count)

  def __getitem__(self, step):
    return {k: v[self.part] for k, v in self.batches[step].items()}


def tuned(sd, params, rows, mesh):
  """The state after all steps, on the host, and the last metrics."""
  part = finetune.partition(params, "kv")
  ids = stable_diffusion.tokenize(sd, [""])
  empty = np.asarray(stable_diffusion.encode_text(sd, params, ids))
  tx = finetune.optimizer(1e-3, STEPS)
  loss = functools.partial(
    finetune.diffusion_loss, sd, part.join, snr_gamma=5.0, caption_dropout=0.3
  )
  seen = {}
  state = finetune.train(
    finetune.init_state(jax.tree.map(np.asarray, part.trained), tx),
    finetune.make_step(loss, tx, 0.9),
    {"params": jax.tree.map(np.asarray, part.frozen), "empty": empty},
    Share(rows, jax.process_index(), jax.process_count()),
    jax.random.key(1),
    mesh=mesh,
    num_steps=STEPS,
    every=STEPS,
    on_metrics=lambda i, values: seen.update(values),
    on_state=lambda i, state: None,
  )
  same = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))
  kept = {"params": same(state.params), "ema": same(state.ema)}
  flat = jax.tree_util.tree_leaves_with_path(kept)
  leaves = {jax.tree_util.keystr(k): np.asarray(v) for k, v in flat}
  return leaves | {k: np.asarray(v) for k, v in seen.items()}


def work(folder, shape):
  """What one of several processes does."""
  sharding.initialize_distributed(True)
  assert jax.process_count() == 2 and jax.device_count() == 8
  # Else everything here is too small to be split.
  split = functools.partial(sharding.param_sharding, min_bytes=0)
  sharding.param_sharding = split
  mesh = sharding.make_mesh(*shape)
  own = folder / str(jax.process_index())
  own.mkdir()
  np.savez(own / "state.npz", **tuned(*model(own), mesh))


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("shape", SHAPES)
def test_two_processes_compute_what_one_device_does(shape, tmp_path):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  started = []
  for i in range(2):
    environment = os.environ | {
      "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
      "PYTHONPATH": str(TESTS.parent),
      "JAX_COORDINATOR_ADDRESS": address,
      "SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost",
      "SLURM_STEP_NUM_NODES": "1", "SLURM_NTASKS": "2",
      "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i),
    }  # fmt: skip
    command = [sys.executable, __file__, str(tmp_path), *map(str, shape)]
    started.append(
      subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True
      )
    )
  try:
    for process in started:
      _, errors = process.communicate(timeout=540)
      assert process.returncode == 0, errors[-3000:]
  finally:
    for process in started:
      process.kill()
  (tmp_path / "one").mkdir()
  one_device = sharding.make_mesh(devices=jax.devices()[:1])
  alone = tuned(*model(tmp_path / "one"), one_device)
  for i in range(2):
    together = np.load(tmp_path / str(i) / "state.npz")
    assert set(together) == set(alone) and len(alone) > 4
    for name, value in alone.items():
      gap = np.abs(together[name] - value).max()
      assert gap < 1e-5 * max(1, np.abs(value).max()), (name, gap)


if __name__ == "__main__":
  jax.config.update("jax_numpy_rank_promotion", "raise")
  work(pathlib.Path(sys.argv[1]), tuple(map(int, sys.argv[2:])))
