"""Many runs in one program: R trainings that share what does not differ.

Every run has its own trained parameters, rows, key and learning rate, and may
have its own frozen leaves, as the 32 kernels of another erasure; the rest of
the network is there once. A run's numbers are those it has alone.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, PRNGKeyArray

from unlearning_jax.finetune.loop import (
  Batched,
  Loss,
  Metrics,
  TrainState,
  make_step,
)


class PackedState(NamedTuple):
  """R runs: every leaf of `runs` is led by the run; `alive` says which go on.

  A run stops where its loss or gradient is not finite, at its last good state.
  """

  runs: TrainState
  alive: Bool[Array, " R"]

  @property
  def step(self) -> Array:
    """Steps done by those that went furthest."""
    return self.runs.step.max()


@dataclasses.dataclass(frozen=True)
class PackedBatches:
  """Each run's batch of a step, stacked: `batches[step]` is led by the run."""

  runs: Sequence[Batched]

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    rows = [run[step] for run in self.runs]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def pack(states: Sequence[TrainState]) -> PackedState:
  """The state of runs that begin together.

  Raises:
    ValueError: no runs, or states of unlike shapes (see `lora.pad`).
  """
  shapes = [jax.tree.map(jnp.shape, state) for state in states]
  if not states or any(shape != shapes[0] for shape in shapes):
    raise ValueError("runs to pack must have states of one shape each")
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
  return PackedState(stacked, jnp.ones(len(states), bool))


def unpack(state: PackedState, run: int) -> TrainState:
  """One run's own state."""
  return jax.tree.map(lambda leaf: leaf[run], state.runs)


def packed_frozen(
  shared: Mapping[str, Any],
  own: Sequence[Mapping[str, Any]],
  keys: Sequence[PRNGKeyArray],
  learning_rates: Sequence[float],
) -> dict[str, Any]:
  """What `make_packed_step` reads besides state and batch.

  Args:
    shared: the loss's `frozen`, as all runs have it.
    own: each run's entries that take the place of `shared`'s, or join them, one
      level deep: {"params": {path: leaf}}. Of one shape in all runs.
    keys: each run's key.
    learning_rates: each run's peak.
  """
  stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *own)
  return {
    "shared": dict(shared),
    "own": stacked,
    "keys": jnp.stack([jax.random.key_data(key) for key in keys]),
    "learning_rates": jnp.asarray(learning_rates, jnp.float32),
  }


def make_packed_step(
  loss: Loss,
  optimizer: Callable[[Array], optax.GradientTransformation],
  ema_decay: float | None,
  *,
  accumulate: int = 1,
) -> Callable[..., tuple[PackedState, Metrics]]:
  """`make_step` for R runs at once, for `train`.

  Args:
    loss: of one run.
    optimizer: a run's peak learning rate to its optimizer.
    ema_decay: as in `make_step`.
    accumulate: as in `make_step`.

  Returns:
    The step (state, frozen of `packed_frozen`, batch of `PackedBatches`, key).
    The key is not used: runs have their own. Metrics are named `loss/0`; those
    of a run that has stopped are 0, as its `alive/0` is.
  """

  def one(state, alive, own, key, rate, batch, shared):
    frozen = dict(shared)
    for name, entry in own.items():
      frozen[name] = {**shared.get(name, {}), **entry}
    step = make_step(loss, optimizer(rate), ema_decay, accumulate=accumulate)
    new, metrics = step(state, frozen, batch, jax.random.wrap_key_data(key))
    finite = jnp.isfinite(metrics["loss"] + metrics["gradient_norm"])
    alive = alive & finite
    kept = jax.tree.map(lambda a, b: jnp.where(alive, a, b), new, state)
    metrics = {k: jnp.where(alive, v, 0.0) for k, v in metrics.items()}
    return kept, alive, metrics | {"alive": alive.astype(jnp.float32)}

  def step(state: PackedState, frozen: Any, batch: Any, key: PRNGKeyArray):
    del key
    every = jax.vmap(one, in_axes=(0, 0, 0, 0, 0, 0, None))
    runs, alive, metrics = every(
      state.runs, state.alive, frozen["own"], frozen["keys"],
      frozen["learning_rates"], batch, frozen["shared"],
    )  # fmt: skip
    named = {
      f"{name}/{i}": values[i]
      for name, values in metrics.items()
      for i in range(len(alive))
    }
    return PackedState(runs, alive), named

  return step
