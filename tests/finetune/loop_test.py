"""The training step and loop, on a toy and against torch's AdamW."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unlearning_jax import finetune, sharding
from unlearning_jax.data import Batches
from unlearning_jax.finetune import loop

STEPS = 20
TRUTH = np.array([[1.0, -2.0], [0.5, 0.0], [-1.0, 3.0]], np.float32)


def loss(params, frozen, batch, key):
  """Regression with noisy inputs, so that the key matters."""
  x = batch["x"] + frozen["sigma"] * jax.random.normal(key, batch["x"].shape)
  error = x @ params["kernel"] + params["bias"][None] - batch["y"]
  return jnp.mean(error**2), {"largest": jnp.abs(error).max()}


def params():
  return {"kernel": np.ones((3, 2), np.float32), "bias": np.ones(2, np.float32)}


def batches(rows=64, size=16):
  x = np.random.default_rng(0).normal(size=(rows, 3)).astype(np.float32)
  return Batches({"x": x, "y": x @ TRUTH}, size)


def one_device():
  return sharding.make_mesh(devices=jax.devices()[:1])


class Run:
  """One training run with what its hooks saw."""

  def __init__(self, num_steps=STEPS, state=None, data=None, **options):
    tx = finetune.optimizer(
      options.pop("learning_rate", 0.1), options.pop("planned", STEPS)
    )
    step = finetune.make_step(
      options.pop("loss", loss), tx, options.pop("ema_decay", 0.9)
    )
    self.metrics, self.states = {}, options.pop("states", {})
    self.state = finetune.train(
      finetune.init_state(params(), tx) if state is None else state,
      step,
      {"sigma": np.float32(options.pop("sigma", 0.1))},
      batches() if data is None else data,
      jax.random.key(1),
      mesh=options.pop("mesh", None) or one_device(),
      num_steps=num_steps,
      watch=finetune.Watch(
        every=options.pop("every", 1),
        on_metrics=self.metrics.__setitem__,
        # Copied: the loop reuses the memory.
        on_state=lambda i, s: self.states.__setitem__(i, jax.device_get(s)),
      ),
    )
    assert not options


def same(a, b):
  leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(np.array_equal(x, y) for x, y in leaves)


def gap(a, b):
  leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return max(float(np.abs(np.asarray(x) - y).max()) for x, y in leaves)


@pytest.fixture(scope="module")
def run():
  return Run()


def test_the_loss_falls():
  long = Run(300, planned=300, sigma=0.0, every=100, learning_rate=0.2)
  assert long.metrics[300]["loss"] < 1e-3 * long.metrics[100]["loss"] + 1e-4
  np.testing.assert_allclose(long.state.params["kernel"], TRUTH, atol=0.05)
  assert int(long.state.step) == 300


def test_hooks_see_every_nth_and_the_last_step(run):
  sparse = Run(every=6)
  assert list(sparse.metrics) == list(sparse.states) == [6, 12, 18, 20]
  for done, values in sparse.metrics.items():
    assert set(values) == {"loss", "gradient_norm", "largest"}
    assert values == run.metrics[done]
    assert int(sparse.states[done].step) == done
  assert same(sparse.state, run.state)


@pytest.mark.parametrize("stop", [1, 7])
def test_a_resume_is_bit_identical(run, stop):
  first = Run(stop)
  rest = Run(state=first.states[stop])
  assert list(rest.metrics) == list(range(stop + 1, STEPS + 1))
  assert same(rest.state, run.state)
  assert rest.metrics == {i: run.metrics[i] for i in rest.metrics}


def test_nothing_is_left_to_do_at_the_end(run):
  again = Run(state=run.states[STEPS])
  assert not again.metrics
  assert same(again.state, run.state)


def test_the_callers_parameters_stay_usable():
  mine = jax.tree.map(jnp.asarray, params())
  tx = finetune.optimizer(0.1, STEPS)
  state = finetune.init_state(mine, tx)
  Run(2, state=state)
  assert same(mine, params())


def test_eight_devices_compute_what_one_does(run):
  mesh = sharding.make_mesh(data=4, fsdp=2)
  assert mesh.size == 8
  spread = Run(mesh=mesh)
  assert len(spread.state.params["kernel"].sharding.device_set) == 8
  assert gap(spread.state, run.state) < 1e-5
  for done, values in run.metrics.items():
    for name, value in values.items():
      assert abs(spread.metrics[done][name] - value) < 1e-5 * max(1, value)


def test_each_step_has_its_own_randomness(run):
  # One batch over and over, in one order, and no learning: only the key can
  # differ.
  data = [batches(16)[0]] * 3
  frozen_in_time = Run(3, data=data, learning_rate=0.0)
  losses = {values["loss"] for values in frozen_in_time.metrics.values()}
  assert len(losses) == 3
  quiet = Run(3, data=data, learning_rate=0.0, sigma=0.0)
  assert np.ptp([v["loss"] for v in quiet.metrics.values()]) < 1e-5


def test_the_average_warms_up(run):
  average = params()
  for i in range(STEPS):
    decay = min(0.9, (1 + i) / (10 + i))
    average = jax.tree.map(
      lambda old, new, decay=decay: decay * old + (1 - decay) * new,
      average,
      run.states[i + 1].params,
    )
    assert gap(run.states[i + 1].ema, average) < 1e-5
  assert gap(run.state.ema, run.state.params) > 0.01


def test_a_loss_that_is_not_finite_stops_the_run():
  def breaks(params, frozen, batch, key):
    value, metrics = loss(params, frozen, batch, key)
    # From the moment that the first weight has moved this far.
    return jnp.where(params["kernel"][0, 1] < 0.7, jnp.nan, value), metrics

  healthy = Run()
  moved = [s.params["kernel"][0, 1] < 0.7 for s in healthy.states.values()]
  fails = moved.index(True) + 2
  assert 2 < fails < STEPS
  seen = {}
  with pytest.raises(FloatingPointError, match=f"loss.* at step {fails}$"):
    Run(loss=breaks, states=seen)
  # No state that holds NaN is handed out to be kept.
  assert list(seen) == list(range(1, fails))


@pytest.mark.parametrize("num_steps", [1, 2, 10, 100])
def test_the_rate_rises_then_falls_to_zero(num_steps):
  tx = finetune.optimizer(1.0, num_steps, weight_decay=0.0)
  weights = {"kernel": jnp.zeros((1, 1))}

  def step(state, _):
    # Adam's update of a constant gradient is the learning rate itself.
    ones = jax.tree.map(jnp.ones_like, weights)
    updates, state = tx.update(ones, state, weights)
    return state, -updates["kernel"][0, 0]

  rates = jax.lax.scan(step, tx.init(weights), length=num_steps + 1)[1]
  warmup = int(0.05 * num_steps)
  assert rates.argmax() == warmup and abs(rates.max() - 1) < 1e-5
  assert (np.diff(rates[: warmup + 1]) > 0).all()
  assert (np.diff(rates[warmup:]) < 0).all() and abs(rates[-1]) < 1e-6


@pytest.mark.torch
@pytest.mark.parametrize("clip_norm", [0.5, 1e3])
def test_steps_equal_torch_adamw(clip_norm):
  torch = pytest.importorskip("torch")
  rng = np.random.default_rng(0)
  gradients = [
    jax.tree.map(
      lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), params()
    )
    for _ in range(STEPS)
  ]
  assert 0.5 < np.linalg.norm(gradients[0]["kernel"]) < 1e3
  tx = finetune.optimizer(
    0.01, STEPS, warmup=0.2, weight_decay=0.3, clip_norm=clip_norm
  )

  # The gradient of sum(g * p) is g.
  def inner(params, frozen, batch, key):
    products = jax.tree.map(lambda g, p: jnp.sum(g * p), batch, params)
    return sum(jax.tree.leaves(products)), {}

  step = jax.jit(finetune.make_step(inner, tx, 0.9))
  state = finetune.init_state(params(), tx)
  theirs = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in params().items()}
  adamw = torch.optim.AdamW(
    [
      {"params": [theirs["kernel"]], "weight_decay": 0.3},
      {"params": [theirs["bias"]], "weight_decay": 0.0},
    ],
    betas=(0.9, 0.99),
    eps=1e-8,
  )
  for i, gradient in enumerate(gradients):
    state, metrics = step(state, {}, gradient, jax.random.key(0))
    for name, parameter in theirs.items():
      parameter.grad = torch.tensor(gradient[name])
    norm = torch.nn.utils.clip_grad_norm_(theirs.values(), clip_norm)
    assert abs(metrics["gradient_norm"] / float(norm) - 1) < 1e-6
    falling = 0.5 * (1 + np.cos(np.pi * (i - 4) / (STEPS - 4)))
    for group in adamw.param_groups:
      group["lr"] = 0.01 * (i / 4 if i < 4 else falling)
    adamw.step()
    for name, parameter in theirs.items():
      ours, wanted = state.params[name], parameter.detach().numpy()
      assert np.abs(ours - wanted).max() < 1e-6, (i, name)
  assert gap(state.params, params()) > 0.02


def test_a_second_run_of_one_step_function_compiles_nothing():
  traced = []

  def step(state, frozen, batch, key):
    traced.append(0)
    # The rate is data: runs may differ in it.
    tx = finetune.optimizer(frozen["learning_rate"], STEPS)
    return finetune.make_step(loss, tx, 0.9)(state, frozen, batch, key)

  def trained(rate):
    return finetune.train(
      finetune.init_state(params(), finetune.optimizer(0.0, STEPS)),
      step,
      {"sigma": np.float32(0.1), "learning_rate": np.float32(rate)},
      batches(),
      jax.random.key(1),
      mesh=one_device(),
      num_steps=STEPS,
      watch=finetune.Watch(every=STEPS),
    )

  runs = {rate: trained(rate) for rate in (0.0, 0.1, 0.2)}
  assert len(traced) == 1
  # And it is the run that has its rate from the start.
  assert same(runs[0.1].params, Run().state.params)
  assert gap(runs[0.0].params, params()) == 0
  assert gap(runs[0.2].params, runs[0.1].params) > 0.01


def test_processes_with_other_weights_are_refused(monkeypatch):
  said = []

  def another(what, word):
    said.append(word)
    return [word, said[0]]

  monkeypatch.setattr(loop.processes, "wait_for_all", another)
  loop._check_equal(params())
  other = params()
  other["bias"][0] = 2
  with pytest.raises(ValueError, match="processes 0 and 1 begin with other"):
    loop._check_equal(other)
