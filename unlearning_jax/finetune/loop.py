"""One training step and one loop, for any loss."""

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from unlearning_jax import sharding
from unlearning_jax.concepts import check_choice

Params = Any
Metrics = dict[str, Float[Array, ""]]
# loss(params, frozen, batch, key) -> (scalar, metrics); `frozen` is whatever
# else the loss reads (other networks' parameters), never differentiated.
Loss = Callable[
  [Params, Any, Mapping[str, Array], PRNGKeyArray],
  tuple[Float[Array, ""], Metrics],
]


SCHEDULES = ("cosine", "constant")


class TrainState(NamedTuple):
  """Everything a resume needs; `ema` averages `params`, or is () for none."""

  step: Array
  params: Params
  opt_state: Any
  ema: Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watch:
  """What looks on while a loop trains, and after which steps.

  Attributes:
    every: both are called after every so many steps, and after the last.
    at: steps after which they are called too.
    on_metrics: gets the steps done and the last step's metrics.
    on_state: gets the steps done and the state, to checkpoint it. The loop
      reuses the state's memory for the next one.
  """

  every: int = 20
  at: Collection[int] = ()
  on_metrics: Callable[[int, dict[str, float]], None] = lambda *_: None
  on_state: Callable[[int, TrainState], None] = lambda *_: None


class Batched(Protocol):
  """Batches by step, as `data.Batches`."""

  def __getitem__(self, step: int) -> dict[str, np.ndarray]: ...  # noqa: D105


def optimizer(
  learning_rate: float | Array,
  num_steps: int,
  *,
  schedule: str = "cosine",
  warmup: float = 0.05,
  weight_decay: float = 0.01,
  decay_all: bool = False,
  clip_norm: float | None = 1.0,
  b2: float = 0.99,
) -> optax.GradientTransformation:
  """AdamW with clipping; a linear warm-up, then the schedule.

  Args:
    learning_rate: its peak. May be traced: runs packed by `vmap` differ in it.
    num_steps: where the cosine reaches zero.
    schedule: "cosine" to zero, or "constant".
    warmup: share of the steps that rise.
    weight_decay: decoupled decay, on matrices and kernels only.
    decay_all: decay biases and norms too, as torch does when not told.
    clip_norm: largest global norm of a gradient; None for any.
    b2: decay of the second moments; torch's default is 0.999.

  Raises:
    ValueError: an unknown schedule.
  """
  check_choice("schedule", schedule, SCHEDULES)
  rising = int(warmup * num_steps)
  if schedule == "cosine":
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, rising, num_steps)
  else:
    ramp = optax.linear_schedule(0.0, 1.0, rising)
    shape = optax.join_schedules([ramp, optax.constant_schedule(1.0)], [rising])
  adamw = optax.adamw(
    lambda count: learning_rate * shape(count),
    b2=b2,
    weight_decay=weight_decay,
    mask=None
    if decay_all
    else lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
  )
  if clip_norm is None:
    return adamw
  return optax.chain(optax.clip_by_global_norm(clip_norm), adamw)


def init_state(
  params: Params, tx: optax.GradientTransformation, *, ema: bool = True
) -> TrainState:
  """The state before the first step; `params` themselves stay usable."""
  # Copies, because `train` gives its state's memory away.
  params, average = (jax.tree.map(jnp.array, params) for _ in range(2))
  step = jnp.zeros((), jnp.int32)
  return TrainState(step, params, tx.init(params), average if ema else ())


def make_step(
  loss: Loss,
  tx: optax.GradientTransformation,
  ema_decay: float | None,
  *,
  accumulate: int = 1,
) -> Callable[..., tuple[TrainState, Metrics]]:
  """The pure step `(state, frozen, batch, key) -> (state, metrics)`.

  The step's randomness is `fold_in(key, state.step)`. The average warms up:
  its decay is min(ema_decay, (1 + step) / (10 + step)).

  Args:
    loss: see `Loss`.
    tx: the optimizer.
    ema_decay: None for a state without an average.
    accumulate: parts that a batch is taken in, one after the other; the step
      follows the mean of their gradients.
  """
  gradient = _accumulated(loss, accumulate)

  def step(state: TrainState, frozen: Any, batch: Any, key: PRNGKeyArray):
    key = jax.random.fold_in(key, state.step)
    (value, metrics), gradients = gradient(state.params, frozen, batch, key)
    updates, opt_state = tx.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.ema
    if ema_decay is not None:
      count = state.step.astype(jnp.float32)
      decay = jnp.minimum(ema_decay, (1 + count) / (10 + count))
      average = jax.tree.map(
        lambda old, new: decay * old + (1 - decay) * new, state.ema, params
      )
    metrics = metrics | {
      "loss": value,
      "gradient_norm": optax.global_norm(gradients),
    }
    return TrainState(state.step + 1, params, opt_state, average), metrics

  return step


# The same loss and optimizer are the same program, compiled once.
_same_step = functools.lru_cache(maxsize=8)(make_step)


def _accumulated(loss: Loss, parts: int) -> Callable[..., Any]:
  """Value and gradient of the loss, meant over parts of the batch."""
  gradient = jax.value_and_grad(loss, has_aux=True)
  if parts == 1:
    return gradient

  def split(leaf: Array) -> Array:
    if len(leaf) % parts:
      raise ValueError(f"accumulate={parts}: a batch has {len(leaf)} rows")
    # Every n-th row: a part has rows of every device, and none of them moves.
    return jnp.moveaxis(leaf.reshape(-1, parts, *leaf.shape[1:]), 1, 0)

  def meant(params: Params, frozen: Any, batch: Any, key: PRNGKeyArray):
    rows, keys = jax.tree.map(split, batch), jax.random.split(key, parts)

    def body(total: Any, part: Any):
      found = gradient(params, frozen, *part)
      return jax.tree.map(jnp.add, total, found), None

    first = jax.tree.map(lambda leaf: leaf[0], (rows, keys))
    shapes = jax.eval_shape(gradient, params, frozen, *first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(body, zeros, (rows, keys))
    return jax.tree.map(lambda leaf: leaf / parts, total)

  return meant


def train(
  state: TrainState,
  step: Callable[..., tuple[TrainState, Metrics]],
  frozen: Any,
  batches: Batched,
  key: PRNGKeyArray,
  *,
  mesh: Any,
  num_steps: int,
  watch: Watch,
) -> TrainState:
  """Runs from `state.step` to `num_steps`.

  Args:
    state: where to begin; a restored state continues as if never stopped. It
      is given up: its arrays are reused for the next state's.
    step: from `make_step`.
    frozen: handed to the loss.
    batches: this process's batches by step.
    key: of the whole run.
    mesh: rows are split over it; large leaves of the state and of `frozen` are
      split over its `fsdp` axis.
    num_steps: where to end.
    watch: what looks on. Metrics are checked when it looks.

  Raises:
    FloatingPointError: a metric is not finite; says after which step.
  """
  layout = sharding.param_sharding(mesh, state)
  state = jax.device_put(state, layout)
  frozen = jax.device_put(frozen, sharding.param_sharding(mesh, frozen))
  # Said for the outputs too: the compiler is free to choose otherwise.
  outputs = (layout, sharding.replicated(mesh))
  compiled = jax.jit(step, donate_argnums=0, out_shardings=outputs)
  done = int(state.step)
  while done < num_steps:
    batch = sharding.global_batch(mesh, batches[done])
    state, metrics = compiled(state, frozen, batch, key)
    done += 1
    if done % watch.every == 0 or done == num_steps or done in watch.at:
      values = {name: float(value) for name, value in metrics.items()}
      wrong = [name for name, v in values.items() if not math.isfinite(v)]
      if wrong:
        raise FloatingPointError(
          f"training: {', '.join(wrong)} not finite at step {done}"
        )
      watch.on_metrics(done, values)
      watch.on_state(done, state)
  return state


def train_erasure(
  loss: Loss,
  tx: optax.GradientTransformation,
  trained: Params,
  frozen: Any,
  batches: Batched,
  key: PRNGKeyArray,
  *,
  batch_size: int,
  num_steps: int,
  begin: Callable[[TrainState], TrainState] = lambda state: state,
  watch: Watch = Watch(),
) -> Params:
  """Trains an erasure, which by itself has nothing to record, to its end.

  Runs on as many of this process's devices as share the batch evenly, so that
  every process of a run comes to the same result: with a batch of one, on one.

  Args:
    loss: see `Loss`.
    tx: the optimizer.
    trained: what the loss is differentiated by.
    frozen: handed to the loss.
    batches: by step.
    key: of the whole run.
    batch_size: rows of a batch.
    num_steps: where to end.
    begin: gives the state to go on from, for the first one.
    watch: what looks on.

  Returns:
    The trained parameters, on the host.

  Raises:
    FloatingPointError: a metric is not finite.
  """
  devices = jax.local_devices()
  devices = devices[: math.gcd(batch_size, len(devices))]
  state = train(
    begin(init_state(trained, tx, ema=False)),
    _same_step(loss, tx, None),
    frozen,
    batches,
    key,
    mesh=sharding.make_mesh(devices=devices),
    num_steps=num_steps,
    watch=watch,
  )
  return jax.device_get(state.params)
