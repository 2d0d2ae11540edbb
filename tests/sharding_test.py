"""Meshes, placements and padded batches, on eight CPU devices."""

import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from unlearning_jax import sharding
from unlearning_jax.record.workdir import Workdir

# Each of two processes doubles its share of 0..15 and records it.
PROCESS = """
import sys, jax, numpy as np
jax.config.update("jax_num_cpu_devices", 2)
from unlearning_jax import processes, sharding
from unlearning_jax.record.workdir import Workdir
folder = sys.argv[1]
processes.initialize_distributed(True)
index = jax.process_index()
mesh = sharding.make_mesh(data=2, fsdp=2)
assert sharding.local_rows_multiple(mesh) == 2
own = np.arange(16.0, dtype=np.float32)[index::2]
batch = sharding.global_batch(mesh, own)
assert batch.shape == (16,)
double = jax.jit(lambda x: 2 * x)(batch)
assert sorted(sharding.all_rows(double)) == [2.0 * i for i in range(16)]
w = np.arange(16.0).reshape(4, 4)
tree = {"w": sharding.place(w, sharding.param_sharding(mesh, w, 0)), "x": w}
found = sharding.gather(tree)
assert all(np.array_equal(leaf, w) for leaf in found.values())
if index:
  # What is one process's own: the others are not waited for.
  with sharding.alone():
    here = sharding.make_mesh()
  rows = sharding.place({"w": w}, sharding.batch_sharding(here))
  assert here.size == 2 and np.array_equal(sharding.gather(rows)["w"], w)
w = sharding.place(np.ones((4, 4), np.float32), sharding.replicated(mesh))
assert float(jax.jit(lambda w, x: w.sum() + x.sum())(w, batch)) == 136
assert sharding.on_all_processes(True)
assert not sharding.on_all_processes(index == 0)
workdir = Workdir(folder, {}, process_index=index, process_count=2)
for i, value in zip(own, sharding.local_rows(double), strict=True):
  workdir.append_row({"id": int(i), "value": value})
workdir.metrics(0, loss=1.0)
processes.wait_for_all("rows written")
assert len(workdir.rows()) == 16
"""


def test_a_mesh_takes_all_devices_and_is_auto():
  mesh = sharding.make_mesh()
  assert dict(mesh.shape) == {"data": 8, "fsdp": 1}
  assert dict(sharding.make_mesh(fsdp=4).shape) == {"data": 2, "fsdp": 4}
  assert mesh.axis_types == (AxisType.Auto,) * 2
  laptop = sharding.make_mesh(devices=jax.devices()[:1])
  assert dict(laptop.shape) == {"data": 1, "fsdp": 1}


@pytest.mark.parametrize("data, fsdp", [(3, 2), (None, 3), (16, 1), (8, 0)])
def test_a_mesh_that_does_not_divide_lists_the_shapes(data, fsdp):
  with pytest.raises(ValueError, match="valid: .*--mesh=data=4,fsdp=2,"):
    sharding.make_mesh(data, fsdp)


def test_a_mesh_is_typed_by_its_axes():
  assert sharding.parse_mesh("data=4,fsdp=2") == {"data": 4, "fsdp": 2}
  assert sharding.parse_mesh("fsdp=8") == {"fsdp": 8}
  assert sharding.parse_mesh("") == {}


@pytest.mark.parametrize(
  "text", ["data=4,fsdb=2", "data=4,data=2", "4,2", "fsdp=-1", "data=4,"]
)
def test_a_mesh_of_another_form_is_refused(text):
  with pytest.raises(ValueError, match=f"--mesh={text}: .*data=4,fsdp=2"):
    sharding.parse_mesh(text)


def test_large_leaves_are_split_along_their_largest_divisible_dimension():
  mesh = sharding.make_mesh(data=2, fsdp=4)
  params = {
    "large": jnp.zeros((1024, 2048)),
    "odd": jnp.zeros((4096, 2049)),
    "indivisible": jnp.zeros((1023, 2049)),
    "small": jnp.zeros((512, 512)),
  }
  specs = jax.tree.map(lambda s: s.spec, sharding.param_sharding(mesh, params))
  assert specs == {
    "large": PartitionSpec(None, "fsdp"),
    "odd": PartitionSpec("fsdp"),
    "indivisible": PartitionSpec(),
    "small": PartitionSpec(),
  }
  placed = sharding.place(params, sharding.param_sharding(mesh, params))
  assert placed["large"].addressable_shards[0].data.shape == (1024, 512)
  assert placed["small"].addressable_shards[0].data.shape == (512, 512)


def test_one_device_and_eight_compute_the_same():
  rng = np.random.default_rng(0)
  w = rng.standard_normal((16, 12)).astype(np.float32)
  batch = {"x": rng.standard_normal((5, 16)).astype(np.float32)}

  @jax.jit
  def loss(w, x, mask):
    return jnp.sum(jnp.where(mask[:, None], jnp.tanh(x @ w), 0.0))

  values = []
  for mesh in (
    sharding.make_mesh(devices=jax.devices()[:1]),
    sharding.make_mesh(data=2, fsdp=4),
  ):
    index = np.arange(5 + -5 % sharding.local_rows_multiple(mesh))
    padded = batch["x"][np.minimum(index, 4)]
    rows = sharding.global_batch(mesh, {"x": padded, "mask": index < 5})
    assert len(rows["x"].sharding.device_set) == mesh.size
    shards = sharding.param_sharding(mesh, w, min_bytes=0)
    values.append(float(loss(sharding.place(w, shards), **rows)))
  expected = np.tanh(batch["x"] @ w).sum()
  np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_rows_come_back_in_order():
  mesh = sharding.make_mesh(data=4, fsdp=2)
  x = np.arange(32, dtype=np.float32).reshape(16, 2)
  doubled = jax.jit(lambda x: x * 2)(sharding.global_batch(mesh, x))
  np.testing.assert_array_equal(sharding.local_rows(doubled), 2 * x)
  np.testing.assert_array_equal(sharding.all_rows(doubled), 2 * x)
  # A result that XLA chose to replicate has each row once, not eight times.
  whole = sharding.place(x, sharding.replicated(mesh))
  np.testing.assert_array_equal(sharding.local_rows(whole), x)

  inside = sharding.param_sharding(mesh, x.T, min_bytes=0)
  columns = sharding.place(x.T, inside)
  with pytest.raises(ValueError, match="split inside"):
    sharding.local_rows(columns)


def test_rows_that_do_not_divide_are_refused():
  with pytest.raises(ValueError, match="5 rows on 8 local device"):
    sharding.global_batch(sharding.make_mesh(), np.zeros((5, 2)))


def test_a_process_alone_is_all_of_them():
  assert sharding.on_all_processes(True)
  assert not sharding.on_all_processes(False)


def test_alone_a_mesh_has_this_process_s_devices(monkeypatch):
  own = jax.devices()[2:4]
  monkeypatch.setattr(jax, "local_devices", lambda: own)
  with pytest.raises(KeyError), sharding.alone():
    assert list(sharding.make_mesh().devices.flat) == own
    assert sharding.make_mesh(devices=jax.devices()).size == 8
    raise KeyError
  assert sharding.make_mesh().size == 8


def test_devices_are_described():
  assert sharding.describe_devices() == {
    "platform": "cpu",
    "kind": "cpu",
    "count": 8,
    "process_count": 1,
  }


@pytest.mark.multiprocess
def test_two_processes_share_one_batch_and_one_workdir(tmp_path):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  command = [sys.executable, "-c", PROCESS, str(tmp_path)]
  peers = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
  processes = [
    subprocess.Popen(
      command, env={**os.environ, **peers, "JAX_PROCESS_ID": str(i)},
      stderr=subprocess.PIPE, text=True,
    )
    for i in range(2)
  ]  # fmt: skip
  for process in processes:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
  workdir = Workdir(tmp_path, {})
  rows = {row["id"]: row["value"] for row in workdir.rows()}
  assert rows == {i: 2.0 * i for i in range(16)}
  assert set(workdir.read_metrics()) == {0}
