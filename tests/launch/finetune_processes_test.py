"""Tuning in two processes: what one device computes, however it is split.

Each process is this file run as a script, started as SLURM would start it.
"""

import functools
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest

from tests.support import narrow, scripts
from unlearning_jax import (
  durable,
  finetune,
  processes,
  settings,
  sharding,
  stable_diffusion,
)
from unlearning_jax.data import Batches
from unlearning_jax.edits import load_edit

STEPS, ROWS = 8, 8
SHAPES = [(8, 1), (4, 2), (1, 8)]


def model(folder):
  """The tests' own model, with everything that a step may do."""
  from tests.stable_diffusion_test import make_files
  from tests.support.tunings import SMALL

  sd, params = stable_diffusion.from_files(make_files(folder, **SMALL))
  images = np.random.default_rng(0).integers(0, 256, (24, 12, 8, 3), np.uint8)
  rows = finetune.encode_examples(sd, params, images, ["a b", "c", "d e"] * 8)
  return sd, params, rows


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
    Batches(rows, ROWS, 3, (jax.process_index(), jax.process_count())),
    jax.random.key(1),
    mesh=mesh,
    num_steps=STEPS,
    watch=finetune.Watch(
      every=STEPS, on_metrics=lambda i, values: seen.update(values)
    ),
  )
  kept = sharding.gather({"params": state.params, "ema": state.ema})
  flat = jax.tree_util.tree_leaves_with_path(kept)
  leaves = {jax.tree_util.keystr(k): np.asarray(v) for k, v in flat}
  return leaves | {k: np.asarray(v) for k, v in seen.items()}


def split_all():
  """Else everything here is too small to be split."""
  split = functools.partial(sharding.param_sharding, min_bytes=0)
  sharding.param_sharding = split
  sharding._GATHERED_BYTES = 1


def work(folder):
  """What one of several processes does: every mesh, one after the other."""
  processes.initialize_distributed(True)
  assert jax.process_count() == 2 and jax.device_count() == 8
  split_all()
  own = folder / str(jax.process_index())
  own.mkdir()
  made = model(own)
  for shape in SHAPES:
    state = tuned(*made, sharding.make_mesh(*shape))
    np.savez(own / f"{shape}.npz", **state)


def script(folder, fsdp, shared=True):
  """A run with adapters and an average, for three steps."""
  from tests.support.tunings import given
  from unlearning_jax.experiments import common
  from unlearning_jax.experiments import finetune as tuning

  if shared:
    processes.initialize_distributed(True)
  split_all()
  chosen = given(
    argument="tiny,only=object/circle+moon", batch_size=4, ema_decay=0.9,
    num_steps=3, checkpoints=(1, 3), log_every=1,
    **{"data.count": 9, "mesh.fsdp": fsdp},
  )  # fmt: skip
  tuning.run(
    chosen,
    lambda: common.workdir(
      str(folder), settings.plain(chosen), tuning.Settings
    ),
    common.load_model(chosen),
  )


def two_processes(devices, *arguments):
  """Runs this file in two processes, to their end."""
  scripts.run_all(
    [
      scripts.Run(__name__, *arguments, env=environment, model=narrow.folder())
      for environment in scripts.slurm(2, devices, quick=True)
    ]
  )


@pytest.fixture(scope="module")
def states(tmp_path_factory, quickest_compiler):
  """The folder of two processes' states, and the state of one device."""
  folder = tmp_path_factory.mktemp("states")
  two_processes(4, "work", folder)
  (folder / "one").mkdir()
  one_device = sharding.make_mesh(devices=jax.devices()[:1])
  return folder, tuned(*model(folder / "one"), one_device)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("shape", SHAPES)
def test_two_processes_compute_what_one_device_does(shape, states):
  folder, alone = states
  for i in range(2):
    together = np.load(folder / str(i) / f"{shape}.npz")
    assert set(together) == set(alone) and len(alone) > 4
    for name, value in alone.items():
      gap = np.abs(together[name] - value).max()
      assert gap < 1e-5 * max(1, np.abs(value).max()), (name, gap)


def kept(folder):
  """All that a run hands on: tensors by file and name."""
  found = {}
  for step in (1, 3):
    edit = load_edit(folder / f"steps/{step:06}.safetensors")
    found |= {(step, name): leaf for name, leaf in edit.leaves.items()}
  tensors, _ = durable.load_tensors(folder / "lora.safetensors", "pt")
  return found | {("lora", name): leaf for name, leaf in tensors.items()}


def one_process(folder):
  """As `two_processes`, of the script in one."""
  scripts.Run(__name__, "alone", folder, 1, model=narrow.folder()).finish()


def near(found, wanted):
  assert set(found) == set(wanted) and len(wanted) > 50
  for name, leaf in wanted.items():
    # Adam's first steps divide tiny gradients by their own size.
    gap = np.linalg.norm(found[name] - leaf)
    assert gap < 2e-3 * np.linalg.norm(leaf), (name, gap)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_processes_save_what_one_does_and_any_number_goes_on(tmp_path):
  one_process(tmp_path / "one")
  alone = kept(tmp_path / "one")
  for fsdp in (1, 2):
    folder = tmp_path / str(fsdp)
    two_processes(1, "script", folder, fsdp)
    together = kept(folder)
    near(together, alone)
    # As if killed after the first step.
    for path in ("checkpoints/3", "DONE", "lora.safetensors", "steps/000003.*"):
      (found,) = folder.glob(path)
      shutil.rmtree(found) if found.is_dir() else found.unlink()
    if fsdp == 1:
      one_process(folder)
      near(kept(folder), alone)
      continue
    two_processes(1, "script", folder, fsdp)
    again = kept(folder)
    for name, leaf in together.items():
      np.testing.assert_array_equal(again[name], leaf)


if __name__ == "__main__":
  jax.config.update("jax_numpy_rank_promotion", "raise")
  task = {
    "work": work,
    "script": script,
    "alone": functools.partial(script, shared=False),
  }[sys.argv[1]]
  task(pathlib.Path(sys.argv[2]), *map(int, sys.argv[3:]))
