"""One training step and one loop, for any loss."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from unlearning_jax import sharding

Params = Any
Metrics = dict[str, Float[Array, ""]]
# loss(params, frozen, batch, key) -> (scalar, metrics); `frozen` is whatever
# else the loss reads (other networks' parameters), never differentiated.
Loss = Callable[
  [Params, Any, Mapping[str, Array], PRNGKeyArray],
  tuple[Float[Array, ""], Metrics],
]


class TrainState(NamedTuple):
  """Everything a resume needs; `ema` is a running average of `params`."""

  step: Array
  params: Params
  opt_state: Any
  ema: Params


class Batched(Protocol):
  """Batches by step, as `data.Batches`."""

  def __getitem__(self, step: int) -> dict[str, np.ndarray]: ...  # noqa: D105


def optimizer(
  learning_rate: float,
  num_steps: int,
  *,
  warmup: float = 0.05,
  weight_decay: float = 0.01,
  clip_norm: float = 1.0,
) -> optax.GradientTransformation:
  """AdamW with clipping; linear warm-up, then a cosine to zero.

  Args:
    learning_rate: its peak.
    num_steps: where the schedule reaches zero.
    warmup: share of the steps that rise.
    weight_decay: decoupled decay, on matrices and kernels only.
    clip_norm: largest global norm of a gradient.
  """
  schedule = optax.warmup_cosine_decay_schedule(
    0.0, learning_rate, int(warmup * num_steps), num_steps
  )
  return optax.chain(
    optax.clip_by_global_norm(clip_norm),
    optax.adamw(
      schedule,
      b2=0.99,
      weight_decay=weight_decay,
      mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
    ),
  )


def init_state(params: Params, tx: optax.GradientTransformation) -> TrainState:
  """The state before the first step; `params` themselves stay usable."""
  # Copies, because `train` gives its state's memory away.
  params, ema = (jax.tree.map(jnp.array, params) for _ in range(2))
  return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), ema)


def make_step(
  loss: Loss, tx: optax.GradientTransformation, ema_decay: float
) -> Callable[..., tuple[TrainState, Metrics]]:
  """The pure step `(state, frozen, batch, key) -> (state, metrics)`.

  The step's randomness is `fold_in(key, state.step)`. The average warms up:
  its decay is min(ema_decay, (1 + step) / (10 + step)).
  """

  def step(state: TrainState, frozen: Any, batch: Any, key: PRNGKeyArray):
    key = jax.random.fold_in(key, state.step)
    grad = jax.value_and_grad(loss, has_aux=True)
    (value, metrics), gradients = grad(state.params, frozen, batch, key)
    updates, opt_state = tx.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    count = state.step.astype(jnp.float32)
    decay = jnp.minimum(ema_decay, (1 + count) / (10 + count))
    ema = jax.tree.map(
      lambda old, new: decay * old + (1 - decay) * new, state.ema, params
    )
    metrics = metrics | {
      "loss": value,
      "gradient_norm": optax.global_norm(gradients),
    }
    return TrainState(state.step + 1, params, opt_state, ema), metrics

  return step


def train(
  state: TrainState,
  step: Callable[..., tuple[TrainState, Metrics]],
  frozen: Any,
  batches: Batched,
  key: PRNGKeyArray,
  *,
  mesh: Any,
  num_steps: int,
  every: int,
  on_metrics: Callable[[int, dict[str, float]], None],
  on_state: Callable[[int, TrainState], None],
) -> TrainState:
  """Runs from `state.step` to `num_steps`.

  Args:
    state: where to begin; a restored state continues as if never stopped. It
      is given up: its arrays are reused for the next state's.
    step: from `make_step`.
    frozen: handed to the loss, replicated.
    batches: this process's batches by step.
    key: of the whole run.
    mesh: rows are split over it, the state is replicated.
    num_steps: where to end.
    every: steps between calls of the two hooks; both see the last step.
    on_metrics: gets (steps done, the last step's metrics).
    on_state: gets (steps done, state), to checkpoint.

  Raises:
    FloatingPointError: a metric is not finite; says after which step.
  """
  everywhere = sharding.replicated(mesh)
  state = jax.device_put(state, everywhere)
  frozen = jax.device_put(frozen, everywhere)
  compiled = jax.jit(step, donate_argnums=0)
  done = int(state.step)
  while done < num_steps:
    batch = sharding.global_batch(mesh, batches[done])
    state, metrics = compiled(state, frozen, batch, key)
    done += 1
    if done % every == 0 or done == num_steps:
      values = {name: float(value) for name, value in metrics.items()}
      wrong = [name for name, v in values.items() if not math.isfinite(v)]
      if wrong:
        raise FloatingPointError(
          f"training: {', '.join(wrong)} not finite at step {done}"
        )
      on_metrics(done, values)
      on_state(done, state)
  return state
