"""Erasures that train together: each ends as if it trained alone."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unlearning_jax import finetune, stops
from unlearning_jax.finetune import together

STEPS = 5
TX = optax.adam(0.1)


class Rows:
  def __init__(self, shift):
    self.shift = shift

  def __getitem__(self, step):
    return {"x": np.full((1, 3), step + self.shift, np.float32)}


def loss(params, frozen, batch, key):
  goal = frozen["goal"] + batch["x"][0] + jax.random.normal(key, (3,))
  # A convolution whose kernel is the training's own.
  drawn = jax.random.normal(key, (1, 4, 4, 3))
  made = jax.lax.conv_general_dilated(
    drawn, params["kernel"], (1, 1), "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )  # fmt: skip
  wanted = goal * params["w"] + frozen["same"]
  value = jnp.square(made - wanted[None, None, None]).mean()
  return value, {"goal": goal.mean()}


def asked(i, size=3, steps=STEPS):
  rng = np.random.default_rng(i)
  trained = {
    "w": np.float32(rng.normal(size=size)),
    "kernel": np.float32(rng.normal(size=(1, 1, 3, 3))),
  }
  frozen = {"goal": np.float32(rng.normal(size=3)), "same": np.ones(3)}
  return together.Asked(
    loss, TX, trained, frozen, Rows(i), jax.random.key(i), 1, steps
  )


class Heard:
  """What a watch was called with."""

  def __init__(self, dies_at=()):
    self.metrics, self.states, self.stopped = {}, {}, []
    self.dies_at = dies_at
    self.failed = None

  def watch(self):
    return finetune.Watch(
      every=2, at=(3,), on_metrics=self._metrics,
      on_state=self._state,
      on_stop=lambda now, state: self.stopped.append(int(state.step)),
    )  # fmt: skip

  def _metrics(self, now, values):
    if now in self.dies_at:
      raise ValueError("lost")
    self.metrics[now] = values

  def _state(self, now, state):
    # The loop reuses its memory.
    self.states[now] = jax.device_get(state)

  @contextlib.contextmanager
  def failing(self):
    try:
      yield
    except (ValueError, FloatingPointError) as error:
      self.failed = str(error)


class Bar:
  def __init__(self):
    self.calls = []

  @contextlib.contextmanager
  def __call__(self, count, total, done):
    self.count, self.total, self.now = count, total, done
    self.calls.append(self)
    yield self

  def update(self, count=1, note=""):
    self.now += count


def train(every, heard, states=None, bar=None):
  members = [
    together.Member(
      ask,
      (lambda _, i=i: states[i]) if states and states[i] else lambda s: s,
      h.watch(),
      h.failing,
    )
    for i, (ask, h) in enumerate(zip(every, heard, strict=True))
  ]
  return together.train_together(members, bar or Bar())


def alone(ask, heard):
  return finetune.train_erasure(**ask._asdict(), watch=heard.watch())


def near(found, wanted):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6),
    found, wanted,
  )  # fmt: skip


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_each_ends_as_alone(count):
  """On eight devices: of nine trainings two on each of five devices."""
  every = [asked(i) for i in range(count)]
  heard, own = ([Heard() for _ in every] for _ in range(2))
  found = train(every, heard)
  for params, ask, both, single in zip(found, every, heard, own, strict=True):
    near(params, alone(ask, single))
    assert both.metrics.keys() == single.metrics.keys() == {2, 3, 4, 5}
    for now, values in single.metrics.items():
      assert both.metrics[now].keys() == values.keys()
      near(both.metrics[now], values)
    near(both.states[3], single.states[3])
  moved = np.abs(found[-1]["kernel"] - every[-1].trained["kernel"]).max()
  assert moved > 0.1


def test_unlike_ones_train_apart():
  every = [asked(0), asked(1, size=()), asked(2), asked(3, steps=2)]
  heard = [Heard() for _ in every]
  found = train(every, heard)
  for params, ask in zip(found, every, strict=True):
    near(params, alone(ask, Heard()))


def test_one_that_went_on_from_a_state_goes_on_alone():
  every = [asked(i) for i in range(3)]
  first = Heard()
  alone(every[1], first)
  states = [None, first.states[3], None]
  heard = [Heard() for _ in every]
  found = train(every, heard, states)
  assert [min(one.metrics) for one in heard] == [2, 4, 2]
  for params, ask in zip(found, every, strict=True):
    near(params, alone(ask, Heard()))


def test_one_that_diverges_fails_alone():
  every = [asked(i) for i in range(3)]
  every[1].frozen["goal"][:] = np.inf
  heard = [Heard(), Heard(), Heard(dies_at=(4,))]
  found = train(every, heard)
  near(found[0], alone(every[0], Heard()))
  assert found[1:] == [None, None]
  assert heard[0].failed is None
  assert heard[1].failed == (
    "training: loss, gradient or another metric not finite by step 2"
  )
  assert heard[1].metrics == {} and heard[2].failed == "lost"
  assert list(heard[2].metrics) == [2, 3]


def test_when_all_have_failed_nothing_trains_on():
  every = [asked(i) for i in range(2)]
  heard, bar = [Heard(dies_at=(2,)) for _ in every], Bar()
  assert train(every, heard, bar=bar) == [None, None]
  assert [one.failed for one in heard] == ["lost", "lost"]
  assert (bar.count, bar.total, bar.now) == (2, STEPS, 0)


def test_a_metric_that_is_not_finite_fails_its_own_training():
  def spoiled(params, frozen, batch, key):
    value, metrics = loss(params, frozen, batch, key)
    return value, metrics | {"growth": 1.0 / frozen["goal"][0]}

  every = [asked(i)._replace(loss=spoiled) for i in range(2)]
  every[0].frozen["goal"][0] = 0.0
  heard, bar = [Heard(), Heard()], Bar()
  found = train(every, heard, bar=bar)
  assert found[0] is None and "metric not finite" in heard[0].failed
  assert found[1] is not None and bar.now == STEPS


def test_a_state_that_cannot_be_read_fails_its_own_training():
  class Damaged:
    def __bool__(self):
      return True

    @property
    def step(self):
      raise ValueError("damaged")

  every, heard = [asked(0), asked(1)], [Heard(), Heard()]
  found = train(every, heard, [Damaged(), None])
  assert found[0] is None and heard[0].failed == "damaged"
  near(found[1], alone(every[1], Heard()))


def test_a_signal_keeps_the_state_of_each(monkeypatch):
  every = [asked(i) for i in range(2)]
  heard = [Heard() for _ in every]
  monkeypatch.setattr(stops, "asked", lambda step: step == 4)
  with pytest.raises(stops.Stopped):
    train(every, heard)
  assert [one.stopped for one in heard] == [[4], [4]]
