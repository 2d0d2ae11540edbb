"""One training step and one loop, for any loss."""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from unlearning_jax import processes, sharding, stops
from unlearning_jax.concepts import check_choice

# What trains, by names: leaves by their paths, adapters by their kernels', or
# the nested parameters of a network.
Params = dict[str, Any]

Metrics = dict[str, Float[Array, ""]]
# loss(params, frozen, batch, key) -> (scalar, metrics). `frozen` is what else
# the loss reads, such as other networks' parameters; it is not differentiated.
Loss = Callable[
  [Params, Any, Mapping[str, Array], PRNGKeyArray],
  tuple[Float[Array, ""], Metrics],
]


SCHEDULES = ("cosine", "constant")


class TrainState(NamedTuple):
  """Everything that a resume needs; `ema` averages `params`, or is ()."""

  step: Array
  params: Params
  opt_state: Any
  ema: Params | tuple[()]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watch:
  """Two functions that the loop calls, and the steps after which it does.

  Attributes:
    every: steps between calls; the last step is always followed by one.
    at: more steps after which the functions are called.
    on_metrics: gets (steps done, the last step's metrics).
    on_state: gets (steps done, state), to write checkpoints. The loop reuses
      the state's memory afterwards.
    on_stop: gets (steps done, state) after a signal to stop, to write a
      checkpoint.
  """

  every: int = 20
  at: Collection[int] = ()
  on_metrics: Callable[[int, dict[str, float]], None] = lambda *_: None
  on_state: Callable[[int, TrainState], None] = lambda *_: None
  on_stop: Callable[[int, TrainState], None] = lambda *_: None


class Batched(Protocol):
  """Batches by step, such as `data.Batches`."""

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
    learning_rate: the peak. It may be traced: packed runs differ in it.
    num_steps: the step at which the cosine reaches zero.
    schedule: "cosine" to zero, or "constant".
    warmup: share of the steps in which the rate rises.
    weight_decay: decoupled decay of matrices and kernels.
    decay_all: whether biases and norms decay too, as by default in torch.
    clip_norm: largest global norm of a gradient; None for no limit.
    b2: decay of the second moments; torch's default is 0.999.

  Raises:
    ValueError: the schedule is unknown.
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
  # These are copies because `train` reuses the memory of its state.
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

  The step's randomness is `fold_in(key, state.step)`. The decay of the average
  is min(ema_decay, (1 + step) / (10 + step)). The metrics gain `loss` and
  `gradient_norm`.

  Args:
    ema_decay: None for a state without an average.
    accumulate: number of equal parts of a batch, taken one after the other; the
      step follows the mean of their gradients.
  """
  gradient = _accumulated(loss, accumulate)

  def step(
    state: TrainState,
    frozen: Any,
    batch: Mapping[str, Array],
    key: PRNGKeyArray,
  ):
    key = jax.random.fold_in(key, state.step)
    (value, metrics), gradients = gradient(state.params, frozen, batch, key)
    updates, opt_state = tx.update(gradients, state.opt_state, state.params)
    params = cast(Params, optax.apply_updates(state.params, updates))
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


# Cached, so that the same loss and optimizer share one compiled program. More
# than there are erasures that train: a job may take them in turn.
@functools.lru_cache(maxsize=32)
def erasure_step(
  loss: Loss, tx: optax.GradientTransformation
) -> Callable[..., tuple[TrainState, Metrics]]:
  """The step of `train_erasure`, which keeps no average."""
  return make_step(loss, tx, None)


def _accumulated(loss: Loss, parts: int) -> Callable[..., Any]:
  """Value and gradient of the loss, averaged over parts of the batch."""
  gradient = jax.value_and_grad(loss, has_aux=True)
  if parts == 1:
    return gradient
  # Traced once for its shapes and for the loop; the program is the same.
  gradient = jax.jit(gradient, inline=True)

  def split(leaf: Array) -> Array:
    if len(leaf) % parts:
      raise ValueError(
        f"accumulate={parts} does not divide the {len(leaf)} rows of a batch"
      )
    # A part takes every n-th row: it then has rows of every device, and no row
    # moves to another device.
    return jnp.moveaxis(leaf.reshape(-1, parts, *leaf.shape[1:]), 1, 0)

  def averaged(
    params: Params,
    frozen: Any,
    batch: Mapping[str, Array],
    key: PRNGKeyArray,
  ):
    rows, keys = jax.tree.map(split, batch), jax.random.split(key, parts)

    def body(total: Any, part: Any):
      found = gradient(params, frozen, *part)
      return jax.tree.map(jnp.add, total, found), None

    first = jax.tree.map(lambda leaf: leaf[0], (rows, keys))
    shapes = jax.eval_shape(gradient, params, frozen, *first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(body, zeros, (rows, keys))
    return jax.tree.map(lambda leaf: leaf / parts, total)

  return averaged


def train(
  state: TrainState,
  step: Callable[..., tuple[TrainState, Metrics]],
  frozen: Any,
  batches: Batched,
  key: PRNGKeyArray,
  *,
  mesh: sharding.Mesh,
  num_steps: int,
  watch: Watch,
  layout: Callable[[sharding.Mesh, Any], Any] | None = None,
) -> TrainState:
  """Trains from `state.step` to step `num_steps`.

  Args:
    state: where to begin; a restored state continues as if never stopped. Do
      not use it afterwards: its memory is reused for the next state.
    step: from `make_step`.
    frozen: what the loss reads and does not train.
    batches: this process's batches by step.
    key: of the whole run.
    mesh: batches are split over all its devices.
    num_steps: the step to train to.
    watch: calls made on the way. Metrics are checked before each call.
    layout: says where the state and `frozen` lie; None for `param_sharding`,
      which splits their large leaves over the mesh's `fsdp` axis.

  Raises:
    FloatingPointError: a metric is not finite; names it and the step.
    ValueError: processes that train together begin with other weights.
    stops.Stopped: a signal asked the run to stop.
  """
  shared = len({device.process_index for device in mesh.devices.flat}) > 1
  if shared:
    _check_equal((state, frozen))
  layout = layout or sharding.param_sharding
  places = layout(mesh, state)
  state = sharding.moved(state, places)
  frozen = sharding.moved(frozen, layout(mesh, frozen))
  # The outputs need it too, or the compiler may choose another layout.
  outputs = (places, sharding.replicated(mesh))
  compiled = jax.jit(step, donate_argnums=0, out_shardings=outputs)
  done = int(state.step)
  with stops.finishing(), processes.together(shared):
    while done < num_steps:
      batch = sharding.global_batch(mesh, batches[done])
      state, metrics = compiled(state, frozen, batch, key)
      done += 1
      stopping = stops.asked(done)
      watched = done % watch.every == 0 or done == num_steps or done in watch.at
      if watched or stopping:
        values = _finite(metrics, done)
      if watched:
        watch.on_metrics(done, values)
        watch.on_state(done, state)
      if stopping:
        watch.on_stop(done, state)
        raise stops.Stopped()
  return state


def _check_equal(tree: Any):
  """Checks that all processes hold the same arrays.

  Raises:
    ValueError: they do not.
  """
  sums = [
    zlib.crc32(np.ascontiguousarray(leaf).data)
    for leaf in jax.tree.leaves(tree)
    # What is split over processes is one array already.
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
  ]
  words = processes.wait_for_all("weights to train", str(sums))
  for index, word in enumerate(words):
    if word != words[0]:
      raise ValueError(
        f"training: processes 0 and {index} begin with other weights; give all "
        "of them the same model, edit and checkpoint"
      )


def _finite(metrics: Metrics, step: int) -> dict[str, float]:
  """The metrics of a step as numbers, which must be finite."""
  values = {name: float(value) for name, value in metrics.items()}
  wrong = [name for name, v in values.items() if not math.isfinite(v)]
  if wrong:
    raise FloatingPointError(
      f"training: {', '.join(wrong)} not finite at step {step}"
    )
  return values


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
  """`train` for an erasure, from its parameters to its parameters.

  Runs on as many of this process's devices as divide the batch evenly: a batch
  of one runs on one device. So every process of a run gets the same result.

  Args:
    trained: parameters that the loss is differentiated by.
    begin: maps the first state to the one to start from, as a resume does.
    watch: calls made on the way.

  Returns:
    The trained parameters, on the host.

  Raises:
    FloatingPointError: as `train`.
  """
  devices = jax.local_devices()
  devices = devices[: math.gcd(batch_size, len(devices))]
  state = train(
    begin(init_state(trained, tx, ema=False)),
    erasure_step(loss, tx),
    frozen,
    batches,
    key,
    mesh=sharding.make_mesh(devices=devices),
    num_steps=num_steps,
    watch=watch,
  )
  return jax.device_get(state.params)
