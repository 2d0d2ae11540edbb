"""Many runs in one program: R trainings that share what they have in common.

Each run has its own trained parameters, rows and key, and its own copy of
anything else that differs, such as the learning rate or the 32 kernels that its
erasure changed. The rest of the network is stored once. A run gets the same
numbers as when it runs alone.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PRNGKeyArray

from unlearning_jax import sharding
from unlearning_jax.finetune.loop import Batched, Metrics, TrainState


class PackedState(NamedTuple):
  """R runs: every leaf of `runs` has a leading axis of R.

  `alive` is False for a run that has stopped, because its gradient or another
  metric was not finite; it keeps its last good state.
  """

  runs: TrainState
  alive: Bool[Array, " R"]

  @property
  def step(self) -> Array:
    """The largest number of steps that a run has done."""
    return self.runs.step.max()


@dataclasses.dataclass(frozen=True)
class PackedBatches:
  """Each run's batch of a step, stacked on a leading axis of R."""

  runs: Sequence[Batched]

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    rows = [run[step] for run in self.runs]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def pack(states: Sequence[TrainState]) -> PackedState:
  """The state of runs that begin together, on the host.

  Raises:
    ValueError: there are no runs, or their states differ in shapes (`lora.pad`
      makes those of adapters equal).
  """
  shapes = [jax.tree.map(jnp.shape, state) for state in states]
  if not states or any(shape != shapes[0] for shape in shapes):
    raise ValueError("runs to pack must have states of one shape each")
  # A device would have to hold those of all the others, too.
  stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *states)
  return PackedState(stacked, cast(Array, np.ones(len(states), bool)))


def unpack(state: PackedState, run: int) -> TrainState:
  """One run's own state, on the host."""
  return taken(state.runs, run)


def taken(tree: Any, run: int) -> Any:
  """One run's part of arrays that runs lead, on the host.

  It is read from the device that has the run, and from no other.
  """

  def read(leaf: Any) -> np.ndarray:
    for shard in getattr(leaf, "addressable_shards", ()):
      first = shard.index[0].start or 0
      if first <= run < first + len(shard.data):
        return np.asarray(shard.data[run - first])
    return np.asarray(leaf[run])

  return jax.tree.map(read, tree)


def packed_frozen(
  frozen: Sequence[Any], keys: Sequence[PRNGKeyArray]
) -> dict[str, Any]:
  """What a packed step reads besides state and batch.

  Args:
    frozen: what each run's own step reads, trees of equal shapes. A leaf that
      is equal in all of them is stored once.
    keys: one a run.
  """
  trees = [jax.tree.leaves(one) for one in frozen]
  # Of two trees, each has None where the other has the leaf.
  own, shared = [], []
  for every in zip(*trees, strict=True):
    first = every[0]
    alike = all(leaf is first or np.array_equal(leaf, first) for leaf in every)
    own.append(None if alike else np.stack(every))
    shared.append(first if alike else None)
  data = jnp.stack([jax.random.key_data(key) for key in keys])
  shape = jax.tree.structure(frozen[0])
  return {
    "shared": jax.tree.unflatten(shape, shared),
    "own": jax.tree.unflatten(shape, own),
    "keys": data,
  }


def layout(mesh: sharding.Mesh, tree: Any) -> Any:
  """Where a packed state or `packed_frozen` lies: a device has whole runs."""
  by_run = sharding.batch_sharding(mesh)

  def split(one: Any) -> Any:
    return jax.tree.map(lambda leaf: by_run, one)

  if isinstance(tree, PackedState):
    return split(tree)
  shared = sharding.param_sharding(mesh, tree["shared"])
  return {**split(tree), "shared": shared}


# Cached, so that all packs of one step share its compiled program.
@functools.lru_cache(maxsize=64)
def make_packed_step(
  step: Callable[..., tuple[TrainState, Metrics]], mesh: sharding.Mesh
) -> Callable[..., Any]:
  """A step of one run, as `make_step` makes it, for R runs at once.

  Args:
    step: of one run.
    mesh: R is a multiple of its devices, each of which steps runs of its own.

  Returns:
    The step (state, frozen of `packed_frozen`, batch of `PackedBatches`, key)
    for `train`. It does not use the key, because runs have their own. Metrics
    of run 0 are called `loss/0`, `alive/0` and so on; those of a run that has
    stopped are 0.
  """

  def one(state, alive, own, key, batch, shared):
    # Each leaf is in one of both trees, and None in the other.
    frozen = jax.tree.map(
      lambda same, mine: same if mine is None else mine, shared, own,
      is_leaf=lambda leaf: leaf is None,
    )  # fmt: skip
    new, metrics = step(state, frozen, batch, jax.random.wrap_key_data(key))
    finite = jnp.isfinite(jnp.stack([*metrics.values()])).all()
    # A run that has stopped keeps its last good state.
    alive = alive & finite
    kept = jax.tree.map(lambda a, b: jnp.where(alive, a, b), new, state)
    metrics = {k: jnp.where(alive, v, 0.0) for k, v in metrics.items()}
    return kept, alive, metrics | {"alive": alive.astype(jnp.float32)}

  def every(shared: Any, runs: tuple[Any, ...]) -> Any:
    state, alive, own, keys, batch = runs
    step_each = jax.vmap(one, in_axes=(0, 0, 0, 0, 0, None))
    return step_each(state, alive, own, keys, batch, shared)

  def packed(
    state: PackedState,
    frozen: Mapping[str, Any],
    batch: Mapping[str, Array],
    key: PRNGKeyArray,
  ):
    del key
    mine = state.runs, state.alive, frozen["own"], frozen["keys"], batch
    stepped = sharding.map_lanes(mesh, every)(frozen["shared"], mine)
    runs, alive, metrics = stepped
    named = {
      f"{name}/{i}": values[i]
      for name, values in metrics.items()
      for i in range(len(alive))
    }
    return PackedState(runs, alive), named

  return packed
