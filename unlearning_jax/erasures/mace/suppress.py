"""MACE's second stage: adapters that suppress a concept's attention.

All concepts train in one compiled program. They share the frozen network;
adapters, examples and optimizer states have a concept axis, which is split over
the devices. Each concept draws from its own key, so it trains to the same
numbers alone and beside others.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Float64, Int, PRNGKeyArray

from unlearning_jax import lora, models, schedules, sharding
from unlearning_jax.lora import Adapters
from unlearning_jax.stable_diffusion import Params, StableDiffusion

State = tuple[Adapters, optax.OptState]

LOSS_FORMS = ("norm", "squared")


def focal_law(
  timesteps: int, t1: float = 200, t2: float = 400, gamma: float = 0.05
) -> Float64[np.ndarray, " t"]:
  """Concept-focal sampling: xi(t) ~ sigm(gamma (t-t1)) - sigm(gamma (t-t2)).

  It favors late sampling steps, because early ones fix the layout, which
  concepts with common words share.

  Returns:
    The probability of each training timestep.

  Raises:
    ValueError: not 0 <= t1 < t2 < timesteps, or gamma is not positive.
  """
  if not 0 <= t1 < t2 < timesteps:
    raise ValueError(f"t1={t1}, t2={t2}; allowed: 0 <= t1 < t2 < {timesteps}")
  if not (np.isfinite(gamma) and gamma > 0):
    raise ValueError(f"gamma={gamma}; allowed: finite numbers above 0")
  t = np.arange(timesteps)
  # tanh does not overflow; sigm(x) = (1 + tanh(x / 2)) / 2.
  law = np.tanh(gamma * (t - t1) / 2) - np.tanh(gamma * (t - t2) / 2)
  return law / law.sum()


class Examples(NamedTuple):
  """A concept's training images and prompts.

  Attributes:
    mean: the mean of the latents' posterior, scaled.
    std: its standard deviation, scaled.
    masks: M, by a layer's number of cells q.
    states: text states of the n prompts.
    targets: S of each prompt.
  """

  mean: Float[np.ndarray, "m h w c"]
  std: Float[np.ndarray, "m h w c"]
  masks: Mapping[int, Bool[np.ndarray, "m q"]]
  states: Float[np.ndarray, "n l d"]
  targets: Bool[np.ndarray, "n l"]


class Plan(NamedTuple):
  """Indices of images and prompts, and timesteps, for s steps of b rows."""

  images: Int[np.ndarray, "s b"]
  prompts: Int[np.ndarray, "s b"]
  timesteps: Int[np.ndarray, "s b"]


def make_plan(
  key: PRNGKeyArray,
  images: int,
  prompts: int,
  num_steps: int,
  batch_size: int,
  law: Float64[np.ndarray, " t"],
) -> Plan:
  """Takes images in shuffled rounds; draws prompts and timesteps (by `law`)."""
  # A stream for each, so that a longer plan begins like a shorter one.
  seed = np.asarray(jax.random.key_data(key)).tolist()
  order, words, times = (np.random.default_rng([*seed, i]) for i in range(3))
  shape = (num_steps, batch_size)
  rounds = -(-num_steps * batch_size // images)
  drawn = np.concatenate([order.permutation(images) for _ in range(rounds)])
  return Plan(
    drawn[: num_steps * batch_size].reshape(shape),
    words.integers(prompts, size=shape),
    times.choice(len(law), size=shape, p=law),
  )


def attention_loss(
  weights: Mapping[str, Float[Array, "b heads q l"]],
  masks: Mapping[int, Bool[Array, "b q"]],
  targets: Bool[Array, "b l"],
  form: str,
) -> Float[Array, " b"]:
  """The attention that the tokens S draw inside the mask, summed over layers.

    squared  sum_l |A_l[:, S] . M_l|_F^2   (paper)
    norm     sum_l |A_l[:, S] . M_l|_F     (release)

  Args:
    weights: A_l, attention probabilities by layer.
    masks: M_l by the layer's number of queries.
    targets: S.
    form: "norm" or "squared".
  """
  total = jnp.zeros(len(targets))
  for layer in weights.values():
    mask = masks[layer.shape[2]].astype(layer.dtype)
    squares = jnp.einsum(
      "bhql,bq,bl->b", layer**2, mask, targets.astype(layer.dtype)
    )
    if form == "norm":
      # The root's slope at zero is infinite: an empty mask would give NaN.
      some = squares > 0
      squares = jnp.where(some, jnp.sqrt(jnp.where(some, squares, 1)), 0)
    total += squares
  return total


# The release's AdamW, without the learning rate, which each concept has itself.
_OPTIMIZER = optax.chain(
  optax.clip_by_global_norm(1.0),
  optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8),
  optax.add_decayed_weights(0.01),
)


@functools.partial(
  jax.jit, static_argnames=("sd", "form"), donate_argnames="state"
)
def _step(
  sd: StableDiffusion,
  trunk: Params,
  state: State,
  runs: Mapping[str, Any],
  step: Array,
  form: str,
):
  """One update of every concept, the first axis of `state` and `runs`."""

  def one(state: State, run: Mapping[str, Any]):
    adapters, opt_state = state
    key = jax.random.fold_in(jax.random.wrap_key_data(run["key"]), step)
    image, prompt, t = (run[name][step] for name in Plan._fields)
    masks = {q: mask[image] for q, mask in run["masks"].items()}

    def loss(adapters: Adapters):
      draw, noise = (
        jax.random.normal(k, run["mean"][image].shape)
        for k in jax.random.split(key)
      )
      latents = run["mean"][image] + run["std"][image] * draw
      noisy = schedules.add_noise(sd.schedule, latents, noise, t)
      _, weights = models.apply_with_attention(
        sd.unet,
        lora.merge(trunk, adapters)["unet"],
        noisy,
        t,
        run["states"][prompt],
      )
      rows = attention_loss(weights, masks, run["targets"][prompt], form)
      return jnp.mean(rows)

    value, gradients = jax.value_and_grad(loss)(adapters)
    updates, opt_state_new = _OPTIMIZER.update(gradients, opt_state, adapters)
    moved = jax.tree.map(
      lambda leaf, update: leaf - run["learning_rate"] * update,
      adapters,
      updates,
    )
    # A concept that has had all its steps keeps its state.
    new = (moved, opt_state_new)
    active = step < run["num_steps"]
    return jax.tree.map(lambda a, b: jnp.where(active, a, b), new, state), value

  # Only matrices differ: see `sharding.map_lanes` before you add convolutions.
  return jax.vmap(one)(state, runs)


class Run(NamedTuple):
  """One concept's training."""

  name: str
  key: PRNGKeyArray
  examples: Examples
  plan: Plan
  learning_rate: float


def train(
  sd: StableDiffusion,
  params: Params,
  runs: Sequence[Run],
  *,
  rank: int,
  form: str,
  pack: int,
) -> tuple[list[Adapters], list[Float[np.ndarray, " s"]]]:
  """Trains one adapter for each concept, on keys and values.

  Args:
    params: the refined parameters, W'; they stay frozen.
    runs: the concepts.
    rank: the adapters' rank.
    form: the loss, "norm" or "squared".
    pack: concepts on one device at a time; changes only memory and time.

  Returns:
    Each concept's adapters, and its loss at each step.

  Raises:
    FloatingPointError: a loss is not finite; names the concept and the step.
  """
  mesh = sharding.make_mesh()
  lanes = min(-(-len(runs) // mesh.size), pack) * mesh.size
  trunk = sharding.place({"unet": params["unet"]}, sharding.replicated(mesh))
  adapters, losses = [], []
  for start in range(0, len(runs), lanes):
    packed = runs[start : start + lanes]
    # The last pack is filled up, so that all packs share a program.
    full = [*packed, *[packed[-1]] * (lanes - len(packed))]
    trained, found = _train_pack(sd, trunk, full, runs, mesh, rank, form)
    for i, run in enumerate(packed):
      rows = found[i, : len(run.plan.images)]
      if not np.isfinite(rows).all():
        first = int(np.flatnonzero(~np.isfinite(rows))[0])
        raise FloatingPointError(
          f"concept {run.name!r}: loss is {rows[first]} at step {first}"
        )
      adapters.append(jax.tree.map(lambda leaf, i=i: leaf[i], trained))
      losses.append(rows)
  return adapters, losses


def _train_pack(sd, trunk, packed, runs, mesh, rank, form):
  """Adapters (lanes, ...) and losses (lanes, s) of one pack, on the host."""
  steps = max(len(run.plan.images) for run in runs)
  images = max(len(run.examples.mean) for run in runs)
  split = sharding.batch_sharding(mesh)
  adapters = lora.stack(
    [lora.init(trunk, run.key, rank=rank, targets="kv") for run in packed]
  )
  state = jax.tree.map(
    np.asarray, (adapters, jax.vmap(_OPTIMIZER.init)(adapters))
  )
  rows = [_row(run, steps, images) for run in packed]
  stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
  state, stacked = sharding.place((state, stacked), split)
  found = []
  for step in range(steps):
    state, losses = _step(
      sd, trunk, state, stacked, jnp.asarray(step), form=form
    )
    found.append(losses)
  trained = jax.tree.map(sharding.all_rows, state[0])
  return trained, sharding.all_rows(jnp.stack(found, axis=1))


def _row(run: Run, steps: int, images: int) -> dict[str, Any]:
  """A run's arrays, padded to the sizes of the longest run."""
  examples = run.examples

  def fill(array: ArrayLike, size: int) -> np.ndarray:
    array = np.asarray(array)
    return array[np.minimum(np.arange(size), len(array) - 1)]

  return {
    "key": np.asarray(jax.random.key_data(run.key)),
    "learning_rate": np.float32(run.learning_rate),
    "num_steps": np.int32(len(run.plan.images)),
    "mean": fill(np.float32(examples.mean), images),
    "std": fill(np.float32(examples.std), images),
    "masks": {q: fill(mask, images) for q, mask in examples.masks.items()},
    "states": np.float32(examples.states),
    "targets": examples.targets,
    **{
      name: fill(np.int32(values), steps)
      for name, values in zip(Plan._fields, run.plan, strict=True)
    },
  }
