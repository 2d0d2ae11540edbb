"""Packed runs: each gives what it gives alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.stable_diffusion_test import make_files
from unlearning_jax import finetune, lora, sharding, stable_diffusion
from unlearning_jax.data import Batches
from unlearning_jax.finetune import packed
from unlearning_jax.projections import leaves_of

pytestmark = pytest.mark.usefixtures("quick_compiler")
STEPS, RANK = 5, 3
RATES, RANKS, SEEDS = (1e-3, 3e-3), (2, 3), (11, 12)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  files = make_files(tmp_path_factory.mktemp("model"))
  return stable_diffusion.from_files(files)


@pytest.fixture(scope="module")
def runs(model):
  """Two runs: other erasure, data, rank, rate and seed."""
  sd, params = model
  found = []
  for i, (rank, seed) in enumerate(zip(RANKS, SEEDS, strict=True)):
    images = np.random.default_rng(i).integers(0, 256, (8, 12, 8, 3), np.uint8)
    rows = finetune.encode_examples(sd, params, images, ["a b", "c"] * 4)
    kernels = {
      f"unet/{path}": np.asarray(kernel) * (1 - 0.1 * i)
      for path, kernel in lora.target_kernels(params, "kv").items()
    }
    # A 1 x 1 convolution, of which XLA would make another on two devices.
    for path, leaf in leaves_of(params).items():
      if path.endswith("proj_in/kernel"):
        kernels[path] = np.asarray(leaf) * (1 - 0.1 * i)
    part = finetune.partition(
      params, "lora", jax.random.key(seed), rank=rank, targets="kv"
    )
    found.append((part, rows, kernels, seed))
  return found


def _path(keys):
  return "/".join(key.key for key in keys)


def make_optimizer(rate):
  return finetune.optimizer(rate, STEPS)


def pieces(model, runs):
  sd, params = model
  ids = stable_diffusion.tokenize(sd, [""])
  empty = stable_diffusion.encode_text(sd, params, ids)
  part = runs[0][0]
  loss = functools.partial(finetune.diffusion_loss, sd, part.join)
  return loss, {"params": part.frozen, "empty": empty}


def mesh_of(devices):
  return sharding.make_mesh(devices=jax.devices()[:devices])


def train(state, step, frozen, batches, key, **options):
  metrics = {}
  final = finetune.train(
    state, step, frozen, batches, key, num_steps=STEPS,
    watch=finetune.Watch(every=1, on_metrics=metrics.__setitem__),
    **{"mesh": mesh_of(1)} | options,
  )  # fmt: skip
  return final, metrics


def alone(model, runs, i):
  loss, shared = pieces(model, runs)
  part, rows, kernels, seed = runs[i]
  tx = make_optimizer(RATES[i])
  frozen = shared | {"params": shared["params"] | kernels}
  return train(
    finetune.init_state(part.trained, tx),
    finetune.make_step(loss, tx, 0.9),
    frozen,
    Batches(rows, 4, seed),
    jax.random.key(seed),
  )


def packed_parts(model, runs, spoil=None, devices=1):
  """State, step, frozen and batches of all runs in one program."""
  loss, shared = pieces(model, runs)
  if spoil is not None:
    loss = spoil(loss)
  states = [
    finetune.init_state(lora.pad(part.trained, RANK), make_optimizer(1.0))
    for part, *_ in runs
  ]
  frozen = packed.packed_frozen(
    [
      shared | {"params": shared["params"] | kernels, "rate": np.float32(rate)}
      for (*_, kernels, _), rate in zip(runs, RATES, strict=True)
    ],
    [jax.random.key(seed) for *_, seed in runs],
  )
  # Only what differs is there twice.
  twice = jax.tree.leaves_with_path(frozen["own"])
  paths = {f"params/{path}" for path in runs[0][2]}
  assert {_path(keys) for keys, _ in twice} == paths | {"rate"}
  batches = packed.PackedBatches(
    [Batches(rows, 4, seed) for _, rows, _, seed in runs]
  )

  def one(state, frozen, batch, key):
    tx = make_optimizer(frozen["rate"])
    return finetune.make_step(loss, tx, 0.9)(state, frozen, batch, key)

  step = packed.make_packed_step(one, mesh_of(devices))
  return packed.pack(states), step, frozen, batches


def together(model, runs, spoil=None, devices=1):
  return train(
    *packed_parts(model, runs, spoil, devices), jax.random.key(0),
    mesh=mesh_of(devices), layout=packed.layout,
  )  # fmt: skip


@pytest.mark.slow
def test_each_device_trains_runs_of_its_own(model, runs):
  spent = []
  for devices in (1, 2):
    state, step, frozen, batches = packed_parts(model, runs, devices=devices)
    mesh = mesh_of(devices)
    layouts = [packed.layout(mesh, x) for x in (state, frozen)]
    program = jax.jit(
      step, out_shardings=(layouts[0], sharding.replicated(mesh))
    ).lower(
      jax.device_put(state, layouts[0]),
      jax.device_put(frozen, layouts[1]),
      sharding.global_batch(mesh, batches[0]),
      jax.random.key(0),
    )
    spent.append(program.compile().cost_analysis()["flops"])
  # Of two runs one each, and Adam's few operations of both.
  assert spent[1] < 0.6 * spent[0]


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_a_run_gives_the_same_numbers_alone_or_packed(model, runs, devices):
  state, metrics = together(model, runs, devices=devices)
  for i, (part, *_) in enumerate(runs):
    mine, values = alone(model, runs, i)
    for step, of_step in values.items():
      for name, value in of_step.items():
        assert abs(metrics[step][f"{name}/{i}"] / value - 1) < 1e-5
      assert metrics[step][f"alive/{i}"] == 1
    own = packed.unpack(state, i)
    for tree, wanted in ((own.params, mine.params), (own.ema, mine.ema)):
      padded = lora.pad(wanted, RANK)
      for path, factors in tree.items():
        for name, factor in factors.items():
          np.testing.assert_allclose(factor, padded[path][name], atol=2e-6)
    moved = jax.tree.map(
      lambda a, b: float(jnp.abs(a - b).max()), mine.params, part.trained
    )
    assert max(jax.tree.leaves(moved)) > 2e-3


@pytest.mark.slow
def test_a_run_that_breaks_stops_and_the_others_go_on(model, runs):
  fine, _ = together(model, runs)
  kernels = runs[0][2]
  path = next(iter(kernels))

  def spoil(loss):
    def spoiled(trained, frozen, batch, key):
      value, metrics = loss(trained, frozen, batch, key)
      # The second run, once it has made a step.
      moved = sum(jnp.abs(f["up"]).sum() for f in trained.values())
      broken = (frozen["params"][path] != kernels[path]).any() & (moved > 0)
      return jnp.where(broken, jnp.nan, value), metrics

    return spoiled

  state, metrics = together(model, runs, spoil)
  assert state.alive.tolist() == [True, False]
  assert state.runs.step.tolist() == [STEPS, 1]
  assert [metrics[i + 1]["alive/1"] for i in range(STEPS)] == [1, 0, 0, 0, 0]
  assert metrics[STEPS]["loss/1"] == 0
  for leaf, wanted in zip(
    jax.tree.leaves(packed.unpack(state, 0).params),
    jax.tree.leaves(packed.unpack(fine, 0).params),
    strict=True,
  ):
    np.testing.assert_allclose(leaf, wanted, atol=1e-6)
  assert all(
    np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.runs.params)
  )


def test_runs_of_unlike_shapes_are_refused(runs):
  states = [
    finetune.init_state(part.trained, make_optimizer(1.0)) for part, *_ in runs
  ]
  with pytest.raises(ValueError, match="one shape"):
    packed.pack(states)
  with pytest.raises(ValueError, match="one shape"):
    packed.pack([])
