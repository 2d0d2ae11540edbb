"""Where arrays live: the only file that names a mesh axis or a device.

The same code runs on a laptop and a pod, because there is always a mesh, `data`
x `fsdp`, 1 x 1 on a laptop. Batches are split over both axes. Parameters are
replicated over `data`; large ones are split over `fsdp`.
"""

import contextlib
import contextvars
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax import core
from jax.experimental import multihost_utils, topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array, Shaped

Tree = TypeVar("Tree")

# It is cheaper to replicate a smaller leaf than to gather it.
FSDP_MIN_BYTES = 4 * 2**20
# What processes send each other at a time.
_GATHERED_BYTES = 64 * 2**20
_ALONE = contextvars.ContextVar("alone", default=False)


def topology_devices(kind: str, shape: str) -> list[Any]:
  """The chips of a TPU slice, as its compiler knows them; no chip is needed.

  Args:
    kind: as "v5e".
    shape: as "2x4".

  Raises:
    ValueError: the compiler, libtpu, is not installed, or knows no such slice.
  """
  # Without them the compiler looks for a machine of Cloud TPU, and no second
  # process may use it.
  for name in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
    os.environ.setdefault(name, "1")
  try:
    found = topologies.get_topology_desc(f"{kind}:{shape}", platform="tpu")
  except (RuntimeError, ImportError, ValueError) as error:
    raise ValueError(
      f"{kind}:{shape}: programs for TPUs need libtpu, pip install libtpu: "
      f"{str(error).splitlines()[0]}"
    ) from error
  return list(found.devices)


def describe_devices() -> dict[str, Any]:
  """Platform, kind and number of devices, and the number of processes."""
  devices = jax.devices()
  return {
    "platform": devices[0].platform,
    "kind": devices[0].device_kind,
    "count": len(devices),
    "process_count": jax.process_count(),
  }


@contextlib.contextmanager
def alone() -> Iterator[None]:
  """Inside, `make_mesh` takes this process's own devices by default.

  Use it for work that the other processes do not share.
  """
  token = _ALONE.set(True)
  try:
    yield
  finally:
    _ALONE.reset(token)


def parse_mesh(text: str) -> dict[str, int]:
  """Reads `data=4,fsdp=2`, the arguments of `make_mesh`; "" names none.

  Raises:
    ValueError: the text has another form.
  """
  named = [re.fullmatch(r"(data|fsdp)=(\d+)", one) for one in text.split(",")]
  found = {one[1]: int(one[2]) for one in named if one}
  if text and len(found) != text.count(",") + 1:
    raise ValueError(
      f"--mesh={text}: must be data=N,fsdp=M, each once or left out; as in "
      "--mesh=data=4,fsdp=2"
    )
  return found


def make_mesh(
  data: int | None = None,
  fsdp: int = 1,
  devices: Sequence[Any] | None = None,
) -> Mesh:
  """A `data` x `fsdp` mesh.

  Args:
    data: copies of the model; None for as many as the devices allow.
    fsdp: devices that one copy of the model is split over.
    devices: None for all devices of all processes; see `alone`.

  Raises:
    ValueError: the product is not the number of devices, or the hardware
      cannot form this shape; lists the valid shapes.
  """
  if devices is None:
    devices = jax.local_devices() if _ALONE.get() else jax.devices()
  count = len(devices)
  shapes = [(count // n, n) for n in range(1, count + 1) if count % n == 0]
  valid = ", ".join(f"--mesh=data={d},fsdp={f}" for d, f in shapes)
  shape = (count // max(fsdp, 1) if data is None else data, fsdp)
  if shape not in shapes:
    raise ValueError(
      f"mesh: data={shape[0]},fsdp={shape[1]} is not {count} device(s); "
      f"valid: {valid}"
    )
  try:
    return jax.make_mesh(
      shape, ("data", "fsdp"), (AxisType.Auto,) * 2, devices=devices
    )
  except (ValueError, NotImplementedError) as error:
    # A torus of devices forms only some of the shapes with the right product.
    raise ValueError(
      f"mesh: these devices do not form data={shape[0]},fsdp={shape[1]}; "
      f"try another of {valid}: {error}"
    ) from error


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The leading axis split over every device."""
  return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def param_sharding(
  mesh: Mesh, params: Any, min_bytes: int = FSDP_MIN_BYTES
) -> Any:
  """A tree of shardings: each leaf's largest divisible axis over `fsdp`.

  Args:
    params: pytree of arrays or shapes; only shape and dtype are read.
    min_bytes: smaller leaves are replicated.
  """
  ways = mesh.shape["fsdp"]

  def rule(leaf: Array | np.ndarray | jax.ShapeDtypeStruct) -> NamedSharding:
    size = math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
    dims = [i for i, n in enumerate(leaf.shape) if n % ways == 0]
    if size < min_bytes or not dims:
      return replicated(mesh)
    axis = max(dims, key=lambda i: leaf.shape[i])
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))

  return jax.tree.map(rule, params)


def on_device(tree: Tree) -> Tree:
  """Host arrays on the default device, which a CPU takes uncopied.

  jnp.asarray would copy them. Arrays that are on devices stay where they are,
  those that several processes share too.
  """
  return jax.tree.map(
    lambda x: x if isinstance(x, jax.Array) else jax.device_put(x), tree
  )


def place(tree: Tree, shardings: Any) -> Tree:
  """Lays out host arrays, which are equal on every process, over the devices.

  Args:
    shardings: one sharding, or a tree of them like `tree`.
  """

  def put(leaf: ArrayLike, sharding: NamedSharding) -> jax.Array:
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(
      whole.shape, sharding, lambda index: whole[index]
    )

  if isinstance(shardings, NamedSharding):
    shardings = jax.tree.map(lambda _: shardings, tree)
  return jax.tree.map(put, tree, shardings)


def moved(tree: Tree, shardings: Any) -> Tree:
  """Lays out arrays, which are equal on every process, over the devices.

  `jax.device_put` onto devices of several processes would first send each leaf
  to all of them, to compare. Arrays that are split over processes already, as a
  resumed state's, are moved by it.

  Args:
    shardings: a tree of them like `tree`.
  """

  def move(leaf: Any, sharding: NamedSharding) -> jax.Array:
    is_split = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    if is_split or sharding.is_fully_addressable:
      return jax.device_put(leaf, sharding)
    leaf = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    parts = sharding.addressable_devices_indices_map(leaf.shape)
    return jax.make_array_from_single_device_arrays(
      leaf.shape, sharding,
      [jax.device_put(leaf[index], to) for to, index in parts.items()],
    )  # fmt: skip

  return jax.tree.map(move, tree, shardings)


def local_rows_multiple(mesh: Mesh) -> int:
  """The number that this process's batch rows must be a multiple of."""
  return mesh.local_mesh.size


def global_batch(mesh: Mesh, local: Tree) -> Tree:
  """Joins each process's own rows into arrays split over all devices.

  Args:
    local: pytree of (b, ...) numpy arrays; b is a multiple of
      `local_rows_multiple(mesh)` and equal on every process.

  Returns:
    The same tree of (b * process_count, ...) arrays.

  Raises:
    ValueError: b is not such a multiple.
  """
  multiple = local_rows_multiple(mesh)
  sharding = batch_sharding(mesh)

  def join(array: np.ndarray) -> jax.Array:
    array = np.asarray(array)
    if array.shape[0] % multiple:
      raise ValueError(
        f"batch: {array.shape[0]} rows on {multiple} local device(s); pad them "
        f"to a multiple of {multiple}"
      )
    return jax.make_array_from_process_local_data(sharding, array)

  return jax.tree.map(join, local)


def map_rows(
  mesh: Mesh, function: Callable[[Any, Any], Any], *, checked: bool = True
) -> Callable[[Any, Any], Any]:
  """A function of (replicated, rows) to rows, run on each device's own rows.

  A result depends, to the last bit, on the rows of its device alone, and not on
  the number of devices.

  Args:
    checked: whether JAX follows what is equal on all devices, and refuses loops
      that begin with it and end with rows.
  """
  split = batch_sharding(mesh).spec
  specs = {"in_specs": (PartitionSpec(), split), "out_specs": split}
  return jax.shard_map(function, mesh=mesh, check_vma=checked, **specs)


def map_lanes(
  mesh: Mesh, function: Callable[[Any, Any], Any]
) -> Callable[[Any, Any], Any]:
  """A function of (replicated, lanes) to lanes, on each device's own lanes.

  Never leave it to the compiler to split a program over lanes whose kernels
  differ: on CPU devices, XLA then computed 1 x 1 convolutions wrongly, without
  an error (`findings/sharded_lanes_wrong.sh`).
  """
  # The function is any loss and optimizer, with loops of every kind.
  return map_rows(mesh, function, checked=False)


def add_row_sums(
  mesh: Mesh, function: Callable[..., Any]
) -> Callable[..., Any]:
  """Sums over a stream of batches; each device adds up its own rows.

  Args:
    function: maps (replicated, a batch's rows) to a tree of sums.

  Returns:
    A jitted function of (totals, replicated, rows) to new totals. A total has a
    leading axis with one entry a device, which you add up at the end: only that
    communicates.
  """
  split = batch_sharding(mesh).spec

  def local(totals: Tree, same: Any, rows: Any) -> Tree:
    added = function(same, rows)
    return jax.tree.map(lambda total, x: total + x[None], totals, added)

  return jax.jit(
    jax.shard_map(
      local,
      mesh=mesh,
      in_specs=(split, PartitionSpec(), split),
      out_specs=split,
    ),
    donate_argnums=0,
  )


def row_shares(rows: Shaped[Array | np.ndarray, "b ..."]) -> int:
  """Devices that share an array's rows; 1 for a traced or a host array."""
  if isinstance(rows, core.Tracer) or not isinstance(rows, jax.Array):
    return 1
  return len(rows) // rows.sharding.shard_shape(rows.shape)[0]


def in_turns(
  function: Callable[[Any], Any], rows: Shaped[Array, "b ..."], turns: int
) -> Any:
  """A function of rows to trees of rows, of a part of them at a time.

  Args:
    turns: how many parts. Where devices share the rows, each has as many of
      its own rows in a part, if `turns` divides what a device has.
  """
  if turns == 1:
    return function(rows)

  def split(x: Array) -> Array:
    return x.reshape(-1, turns, *x.shape[1:]).swapaxes(0, 1)

  def join(x: Array) -> Array:
    return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])

  return jax.tree.map(join, jax.lax.map(function, split(rows)))


def local_rows(array: Shaped[Array, "b ..."]) -> Shaped[np.ndarray, "n ..."]:
  """This process's rows of a batch, in order: the inverse of `global_batch`.

  Raises:
    ValueError: the array is split along another axis than the leading one.
  """
  shards = {s.index[0].start or 0: s.data for s in array.addressable_shards}
  rows = np.concatenate([np.asarray(shards[i]) for i in sorted(shards)])
  if rows.shape[1:] != array.shape[1:]:
    raise ValueError(f"rows: {array.shape} is split inside: {array.sharding}")
  return rows


def on_all_processes(here: bool) -> bool:
  """Whether `here` is True on every process; a collective: all must call it."""
  return bool(np.all(multihost_utils.process_allgather(np.asarray(here))))


def of_each(rows: Shaped[np.ndarray, "n ..."]) -> list[np.ndarray]:
  """Every process's array, on every process, in order; a collective.

  Args:
    rows: this process's. The others' may be longer or shorter.
  """
  if jax.process_count() == 1:
    return [rows]
  gather = multihost_utils.process_allgather
  counts = gather(np.int32(len(rows)))
  most = int(counts.max())
  padded = np.zeros((most, *rows.shape[1:]), rows.dtype)
  padded[: len(rows)] = rows
  # All of them lie on each device meanwhile.
  some = max(1, _GATHERED_BYTES // max(1, padded[:1].nbytes))
  found = [gather(padded[i : i + some]) for i in range(0, most, some)]
  whole = np.concatenate(found, axis=1).astype(rows.dtype, copy=False)
  return [part[:count] for part, count in zip(whole, counts, strict=True)]


def all_rows(array: Shaped[Array, "b ..."]) -> Shaped[np.ndarray, "b ..."]:
  """All rows of a batch on every process; a collective: all must call it."""
  if isinstance(array, np.ndarray) or array.is_fully_addressable:
    return np.asarray(array)
  return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def gather(tree: Tree) -> Tree:
  """Whole leaves on every process's host: the inverse of `place`.

  This is a collective: all processes must call it. It takes leaf after leaf,
  because a device has room for one whole leaf, but not for all.
  """
  return jax.tree.map(all_rows, tree)
