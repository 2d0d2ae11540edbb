"""Checkpoints: exact round trips, atomic, and picky about their target."""

import logging
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.processes_test import started
from unlearning_jax import checkpoints, durable, processes

# Each process must refuse the step, and the waits after it must meet.
TOGETHER = """
import pathlib, sys
import numpy as np
from unlearning_jax import checkpoints, durable, processes
processes.initialize_distributed(True)
import jax
folder, state = pathlib.Path(sys.argv[1]), {"w": np.arange(4096.0)}
checkpoints.save(folder, 1, state)
if jax.process_index() == 0:
  path = max(folder.rglob("*"), key=lambda path: path.stat().st_size)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
processes.wait_for_all("damaged")
try:
  checkpoints.restore(folder, state)
except durable.DamagedError as error:
  assert "is not what was saved" in str(error), error
else:
  sys.exit("restored")
processes.wait_for_all("ended")
"""


def make_state():
  params = {"unet": {"conv_in": {"kernel": jnp.arange(24.0).reshape(4, 6)}}}
  opt_state = optax.adamw(1e-3).init(params)
  return {"params": params, "opt_state": opt_state, "step": 7}


def test_round_trip_keeps_structure_and_bits(tmp_path):
  state = make_state()
  checkpoints.save(tmp_path / "c", 7, state)
  back = checkpoints.restore(tmp_path / "c", state)
  assert jax.tree.structure(back) == jax.tree.structure(state)
  for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True):
    np.testing.assert_array_equal(a, b)
    assert isinstance(a, np.ndarray) == (not isinstance(b, jax.Array))


def test_target_decides_placement(tmp_path):
  mesh = jax.make_mesh((8,), ("x",))
  spec = jax.sharding.PartitionSpec("x")
  sharding = jax.sharding.NamedSharding(mesh, spec)
  value = np.arange(32, dtype=np.float32)
  checkpoints.save(tmp_path, 1, {"w": jax.device_put(value, sharding)})
  one = checkpoints.restore(tmp_path, {"w": jnp.zeros(32)})["w"]
  assert len(one.sharding.device_set) == 1
  np.testing.assert_array_equal(one, value)
  shape = jax.ShapeDtypeStruct((32,), jnp.float32, sharding=sharding)
  eight = checkpoints.restore(tmp_path, {"w": shape})["w"]
  assert eight.sharding == sharding
  np.testing.assert_array_equal(eight, value)


def test_keeps_the_last_and_refuses_to_go_back(tmp_path):
  folder = tmp_path / "c"
  assert checkpoints.latest_step(folder) is None
  assert not folder.exists()
  for step in (1, 2, 5):
    checkpoints.save(folder, step, {"w": jnp.full(3, step)}, keep_n=2)
  assert checkpoints.latest_step(folder) == 5
  target = {"w": jnp.zeros(3, jnp.int32)}
  assert checkpoints.restore(folder, target, step=2)["w"][0] == 2
  with pytest.raises(ValueError, match=r"no step 1 .* \[2, 5\]"):
    checkpoints.restore(folder, target, step=1)
  with pytest.raises(ValueError, match="step 5 is not after 5"):
    checkpoints.save(folder, 5, target)


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda p: p.update(bias=jnp.zeros(6)), "missing: params/unet/bias"),
    (lambda p: p.clear(), "extra: params/unet/conv_in/kernel"),
    (
      lambda p: p["conv_in"].update(kernel=jnp.zeros((6, 4))),
      r"conv_in/kernel is \(4, 6\) float32, want \(6, 4\) float32",
    ),
    (
      lambda p: p["conv_in"].update(kernel=jnp.zeros((4, 6), jnp.bfloat16)),
      r"want \(4, 6\) bfloat16",
    ),
  ],
)
def test_names_the_leaves_that_do_not_fit(tmp_path, change, message):
  checkpoints.save(tmp_path, 1, make_state())
  target = make_state()
  change(target["params"]["unet"])
  with pytest.raises(ValueError, match=message):
    checkpoints.restore(tmp_path, target)


def test_restore_from_nothing(tmp_path):
  with pytest.raises(ValueError, match="there is no folder"):
    checkpoints.restore(tmp_path / "none", {})
  with pytest.raises(ValueError, match=r"it has \[\]"):
    checkpoints.restore(tmp_path, {})


def test_a_torn_save_is_not_a_step(tmp_path):
  checkpoints.save(tmp_path, 1, {"w": jnp.ones(3)})
  torn = tmp_path / "2.orbax-checkpoint-tmp-1"
  torn.mkdir()
  (torn / "rubbish").write_text("half")
  assert checkpoints.latest_step(tmp_path) == 1
  checkpoints.save(tmp_path, 2, {"w": jnp.ones(3)})
  assert checkpoints.latest_step(tmp_path) == 2


def largest(folder):
  return max(folder.rglob("*"), key=lambda path: path.stat().st_size)


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_step_gives_way_to_the_one_before(tmp_path, damage, caplog):
  rows = np.random.default_rng(0).normal(size=(2, 64, 64))
  for step in (1, 2):
    checkpoints.save(tmp_path, step, {"w": rows[step - 1]})
  path = largest(tmp_path / "2")
  if damage == "cut":
    path.write_bytes(path.read_bytes()[:1000])
  elif damage == "flip":
    flip(path)
  else:
    path.unlink()
  target = {"w": np.zeros((64, 64))}
  with caplog.at_level(logging.WARNING):
    back = checkpoints.restore(tmp_path, target)
  np.testing.assert_array_equal(back["w"], rows[0])
  assert "step 2" in caplog.text and "cannot be read" in caplog.text
  # What could not be read stays, and its step is free.
  assert len([*tmp_path.glob("damaged-2-*")]) == 1
  checkpoints.save(tmp_path, 2, target)
  assert checkpoints.latest_step(tmp_path) == 2


def test_a_process_hears_what_another_finds_damaged(tmp_path, monkeypatch):
  """It would wait in orbax for that one, which has raised."""
  for step in (1, 2):
    checkpoints.save(tmp_path, step, {"w": np.ones(3)})
  said = "2/x is not what was saved"
  monkeypatch.setattr(
    processes, "wait_for_all", lambda what, word="": [said, word]
  )
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  with pytest.raises(durable.DamagedError, match=f"delete .*/2 .*{said}"):
    checkpoints.restore(tmp_path, {"w": np.zeros(3)}, 2)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_all_processes_refuse_a_damaged_step(tmp_path):
  running = started(TOGETHER, [str(tmp_path)], [str(tmp_path)])
  errors = [process.communicate(timeout=120)[1] for process in running]
  assert [process.returncode for process in running] == [0, 0], errors


def test_a_step_of_an_earlier_version_has_no_hashes(tmp_path):
  checkpoints.save(tmp_path, 1, {"w": np.ones(3)})
  (tmp_path / "1" / "sums.json").unlink()
  np.testing.assert_array_equal(
    checkpoints.restore(tmp_path, {"w": np.zeros(3)})["w"], np.ones(3)
  )


def test_without_a_whole_step_nothing_is_restored_or_renamed(tmp_path):
  checkpoints.save(tmp_path, 1, {"w": np.ones(3)})
  (tmp_path / "1" / "default" / "_METADATA").unlink()
  with pytest.raises(durable.DamagedError, match="step 1 .*delete"):
    checkpoints.restore(tmp_path, {"w": np.ones(3)})
  assert (tmp_path / "1").is_dir()


def test_a_pipe_among_the_files_is_not_waited_for(tmp_path):
  checkpoints.save(tmp_path / "c", 1, {"a": np.ones(2)})
  os.mkfifo(tmp_path / "c" / "1" / "x")
  for read in (checkpoints.latest_step, lambda p: checkpoints.restore(p, {})):
    with pytest.raises(durable.DamagedError, match="1/x is no file and no"):
      read(tmp_path / "c")
