"""Where arrays live: the only file that names a mesh axis or a device.

One code path from a laptop to a pod: there is always a mesh, `data` x `fsdp`,
1 x 1 on a laptop. Batches are split over both axes; parameters are replicated
over `data` and, when large, split over `fsdp`.
"""

import contextlib
import contextvars
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Shaped

Tree = TypeVar("Tree")

# Below this a leaf is cheaper to copy than to gather.
FSDP_MIN_BYTES = 4 * 2**20
# A barrier's name serves once; every process passes all of them in order.
_BARRIERS = itertools.count()
_LONG_MS = 7 * 24 * 3600 * 1000
_ALONE = contextvars.ContextVar("alone", default=False)


def initialize_distributed(wanted: bool):
  """Joins the other processes of the run; must come before any other JAX call.

  JAX finds the coordinator itself on Cloud TPU, SLURM, Kubernetes and MPI.
  Elsewhere the environment tells: JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES
  and JAX_PROCESS_ID. A failure is raised: a process must never go on to work
  alone by mistake.

  Raises:
    ValueError: nothing tells who the others are, or what does is no number.
  """
  if wanted:
    jax.distributed.initialize(
      num_processes=_number("JAX_NUM_PROCESSES"),
      process_id=_number("JAX_PROCESS_ID"),
    )
    # On CPUs the first collective waits 30 s for the others, and no longer:
    # have it now, while all are here.
    multihost_utils.sync_global_devices("joined")


def _number(name: str) -> int | None:
  """What the environment says, if it says anything."""
  value = os.environ.get(name)
  if value is not None and not value.isdecimal():
    raise ValueError(f"{name}={value!r}: must be a number")
  return None if value is None else int(value)


def wait_for_all(what: str):
  """Until every process is here: before one reads what the others wrote.

  However long that takes: no collective, which would not wait, but a barrier
  of the coordinator, who notices when a process dies.
  """
  if jax.process_count() > 1:
    # A second to import, for which a process alone has no use.
    from orbax.checkpoint import multihost

    barrier = multihost.get_barrier_sync_fn()
    barrier(key=f"{what} {next(_BARRIERS)}", timeout_ms=_LONG_MS)


def describe_devices() -> dict[str, Any]:
  """What runs this: platform, kind, number of devices and processes."""
  devices = jax.devices()
  return {
    "platform": devices[0].platform,
    "kind": devices[0].device_kind,
    "count": len(devices),
    "process_count": jax.process_count(),
  }


@contextlib.contextmanager
def alone() -> Iterator[None]:
  """Within it, `make_mesh` takes this process's own devices by default.

  For work in which the other processes have no part.
  """
  token = _ALONE.set(True)
  try:
    yield
  finally:
    _ALONE.reset(token)


def make_mesh(
  data: int | None = None,
  fsdp: int = 1,
  devices: Sequence[Any] | None = None,
) -> Mesh:
  """A `data` x `fsdp` mesh over all devices, or those given.

  Args:
    data: copies of the model; by default as many as the devices allow.
    fsdp: devices that one copy of the model is split over.
    devices: by default all, of all processes; see `alone`.

  Raises:
    ValueError: the product is not the number of devices, or the hardware's
      own shape cannot carry it; valid shapes are listed.
  """
  if devices is None:
    devices = jax.local_devices() if _ALONE.get() else jax.devices()
  count = len(devices)
  valid = [(count // n, n) for n in range(1, count + 1) if count % n == 0]
  shape = (count // max(fsdp, 1) if data is None else data, fsdp)
  if shape not in valid:
    raise ValueError(
      f"mesh: data={shape[0]} x fsdp={shape[1]} is not {count} device(s); "
      f"valid (data, fsdp): {valid}"
    )
  try:
    return jax.make_mesh(
      shape, ("data", "fsdp"), (AxisType.Auto,) * 2, devices=devices
    )
  except (ValueError, NotImplementedError) as error:
    # Torus hardware carries only some of the shapes with the right product.
    raise ValueError(
      f"mesh: these devices do not form data={shape[0]} x fsdp={shape[1]}; "
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
  """A sharding per leaf: the largest divisible dimension over `fsdp`.

  Args:
    mesh: from `make_mesh`.
    params: pytree of arrays or shapes; only shape and dtype are read.
    min_bytes: smaller leaves are replicated.

  Returns:
    A tree like `params` of shardings, for `place` or `jit`'s in_shardings.
  """
  ways = mesh.shape["fsdp"]

  def rule(leaf: Any) -> NamedSharding:
    size = math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
    dims = [i for i, n in enumerate(leaf.shape) if n % ways == 0]
    if size < min_bytes or not dims:
      return replicated(mesh)
    axis = max(dims, key=lambda i: leaf.shape[i])
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "fsdp"))

  return jax.tree.map(rule, params)


def place(tree: Tree, shardings: Any) -> Tree:
  """Host arrays, the same on every process, laid out over the devices.

  Args:
    tree: pytree of numpy or host-local arrays.
    shardings: one sharding, or a tree of them like `tree`.
  """

  def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    leaf = np.asarray(leaf)
    return jax.make_array_from_callback(
      leaf.shape, sharding, lambda index: leaf[index]
    )

  if isinstance(shardings, NamedSharding):
    shardings = jax.tree.map(lambda _: shardings, tree)
  return jax.tree.map(put, tree, shardings)


def local_rows_multiple(mesh: Mesh) -> int:
  """What this process's number of batch rows must be a multiple of."""
  return mesh.local_mesh.size


def pad_to_multiple(
  batch: Mapping[str, Shaped[np.ndarray, "b ..."]], multiple: int
) -> tuple[dict[str, np.ndarray], Bool[np.ndarray, " padded"]]:
  """Repeats the last row until the row count divides.

  A real row, not zeros: padding then meets no special values on its way.

  Args:
    batch: arrays of one leading length, at least 1.
    multiple: usually `local_rows_multiple(mesh)`.

  Returns:
    The padded arrays, and a mask that is True where a row is real.

  Raises:
    ValueError: no rows, or leading lengths that differ.
  """
  lengths = {name: len(array) for name, array in batch.items()}
  if len(set(lengths.values())) != 1 or 0 in lengths.values():
    raise ValueError(f"batch: want one length, at least 1, got {lengths}")
  count = next(iter(lengths.values()))
  extra = -count % multiple
  index = np.minimum(np.arange(count + extra), count - 1)
  padded = {name: np.asarray(array)[index] for name, array in batch.items()}
  return padded, np.arange(count + extra) < count


def global_batch(mesh: Mesh, local: Tree) -> Tree:
  """Each process's own rows, joined into arrays split over all devices.

  Args:
    mesh: from `make_mesh`.
    local: pytree of (b, ...) numpy arrays; b is a multiple of
      `local_rows_multiple(mesh)` and the same on every process.

  Returns:
    The same tree of (b * process_count, ...) arrays.

  Raises:
    ValueError: b is no such multiple.
  """
  multiple = local_rows_multiple(mesh)
  sharding = batch_sharding(mesh)

  def join(array: Any) -> jax.Array:
    array = np.asarray(array)
    if array.shape[0] % multiple:
      raise ValueError(
        f"batch: {array.shape[0]} rows on {multiple} local device(s); "
        "use pad_to_multiple first"
      )
    return jax.make_array_from_process_local_data(sharding, array)

  return jax.tree.map(join, local)


def map_rows(
  mesh: Mesh, function: Callable[[Any, Any], Any]
) -> Callable[[Any, Any], Any]:
  """A function of (replicated, rows) to rows, each device its own by itself.

  What a row becomes then depends on its device's rows alone, to the last bit,
  and not on how many devices there are.
  """
  split = batch_sharding(mesh).spec
  specs = {"in_specs": (PartitionSpec(), split), "out_specs": split}
  return jax.shard_map(function, mesh=mesh, **specs)


def add_row_sums(
  mesh: Mesh, function: Callable[..., Any]
) -> Callable[..., Any]:
  """Sums over a stream of batches, each device adding up its own rows.

  Args:
    mesh: from `make_mesh`.
    function: of replicated arguments and a batch's rows, to a tree of sums.

  Returns:
    A jitted function of (totals, replicated, rows) to new totals; a total has a
    leading axis, an entry a device. Add that axis up at the end: all the
    communication there is.
  """
  split = batch_sharding(mesh).spec

  def local(totals: Any, same: Any, rows: Any) -> Any:
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


def local_rows(array: Shaped[Array, "b ..."]) -> Shaped[np.ndarray, "n ..."]:
  """This process's rows of a batch, in order: `global_batch` undone.

  Args:
    array: split over its leading axis only, or not at all.

  Raises:
    ValueError: the array is split along another axis.
  """
  shards = {s.index[0].start or 0: s.data for s in array.addressable_shards}
  rows = np.concatenate([np.asarray(shards[i]) for i in sorted(shards)])
  if rows.shape[1:] != array.shape[1:]:
    raise ValueError(f"rows: {array.shape} is split inside: {array.sharding}")
  return rows


def on_all_processes(here: bool) -> bool:
  """Whether it is so on every process; a collective, so all must call it."""
  return bool(np.all(multihost_utils.process_allgather(np.asarray(here))))


def all_rows(array: Shaped[Array, "b ..."]) -> Shaped[np.ndarray, "b ..."]:
  """All rows of a batch on every process; a collective, so all must call it."""
  if isinstance(array, np.ndarray) or array.is_fully_addressable:
    return np.asarray(array)
  return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def gather(tree: Tree) -> Tree:
  """Whole leaves on every process's host: `place` undone.

  A collective, so all must call it. Leaf after leaf: a device has room for one
  that is whole, not for all.
  """
  return jax.tree.map(all_rows, tree)
