"""Edits that are made at once: each is the one that is made alone."""

import contextlib
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from unlearning_jax import finetune, shapes, stable_diffusion
from unlearning_jax.concepts import make_concepts
from unlearning_jax.edits import edit_between, load_edit
from unlearning_jax.experiments import erase, erase_together
from unlearning_jax.model import Model
from unlearning_jax.record.workdir import Workdir

CONCEPTS = make_concepts(["star"], "circle", ["moon"])
LEAF, TX, STEPS = "unet/conv_out/bias", optax.sgd(0.1), 4
LATE, DIVERGES = 14, 13


class Killed(BaseException):
  pass


def loss(trained, frozen, batch, key):
  wanted = frozen["drawn"] * batch["x"][0] + jax.random.normal(key, ())
  return jnp.square(trained[LEAF] - wanted).mean(), {}


class Rows:
  def __init__(self, dies_at):
    self.dies_at = dies_at

  def __getitem__(self, step):
    if step == self.dies_at:
      raise Killed
    return {"x": np.full(1, step, np.float32)}


class Twice:
  """An erasure that draws twice, and trains again what it has trained."""

  def __init__(self, dies_at=None):
    self.drawn, self.starts, self.dies_at = [], [], dies_at

  def __call__(self, sd, params, concepts, key, hooks):
    seed = int(jax.random.key_data(key)[-1])
    self.starts.append(seed)

    def make(i):
      self.drawn.append((seed, i))
      return np.full(2, seed + i, np.float32)

    drawn = [*hooks.collect("a", 2, make), *hooks.collect("b", 1, make)]
    scale = np.nan if seed == DIVERGES else sum(row[0] for row in drawn)
    part = finetune.subset(params, lambda path: path == LEAF)
    trained = part.trained
    for _ in range(2):
      trained = hooks.trainer(
        loss, TX, trained, {"drawn": np.float32(scale)}, Rows(self.dies_at),
        key, batch_size=1, num_steps=STEPS,
      )  # fmt: skip
    if seed == LATE:
      raise ValueError("late")
    made = part.join(trained, part.frozen)
    return edit_between(
      params, made, method="toy", concepts=concepts, diagnostics={}
    )


@pytest.fixture(scope="module")
def model():
  return Model(*stable_diffusion.load(shapes.model_folder()))


@pytest.fixture(autouse=True)
def unprobed(monkeypatch):
  monkeypatch.setattr(erase, "probed", lambda *args, **options: None)


def wanted(model, root, erasure, seeds, failed):
  def failing(seed):
    @contextlib.contextmanager
    def context():
      try:
        yield
      except (ValueError, FloatingPointError) as error:
        failed[seed] = str(error)

    return context

  return [
    erase_together.Wanted(
      types.SimpleNamespace(erasure=erasure, phrases=CONCEPTS, seed=seed),
      Workdir(root / str(seed), {}), model, failing(seed),
    )
    for seed in seeds
  ]  # fmt: skip


def leaf(path):
  return load_edit(path / "edit.safetensors").tensors[LEAF]


def alone(model, root, seed):
  path = root / f"alone-{seed}" / "edit.safetensors"
  path.parent.mkdir()
  erase.made(path, model, Twice(), CONCEPTS, seed)
  return leaf(path.parent)


def test_each_is_made_as_alone_and_draws_once(model, tmp_path):
  erasure, failed = Twice(), {}
  every = wanted(model, tmp_path, erasure, (1, 2, 3), failed)
  erase_together.make(every)
  assert not failed
  assert sorted(erasure.drawn) == [(s, i) for s in (1, 2, 3) for i in (0, 0, 1)]
  # Begun, and once more for each of two trainings.
  assert erasure.starts == 3 * [1, 2, 3]
  for seed in (1, 2, 3):
    np.testing.assert_allclose(
      leaf(tmp_path / str(seed)), alone(model, tmp_path, seed), rtol=1e-5
    )
    lines = (tmp_path / str(seed) / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [STEPS, STEPS]


def test_an_edit_that_is_there_is_kept(model, tmp_path):
  erase_together.make(wanted(model, tmp_path, Twice(), (1,), {}))
  erasure = Twice()
  erase_together.make(wanted(model, tmp_path, erasure, (1, 2), {}))
  assert set(erasure.starts) == {2}


def test_those_that_fail_leave_the_others(model, tmp_path):
  failed = {}
  seeds = (1, DIVERGES, LATE, 2)
  erase_together.make(wanted(model, tmp_path, Twice(), seeds, failed))
  assert failed == {
    DIVERGES: (
      f"training: loss, gradient or another metric not finite by step {STEPS}"
    ),
    LATE: "late",
  }
  for seed in seeds:
    is_made = (tmp_path / str(seed) / "edit.safetensors").exists()
    assert is_made == (seed not in failed)
  np.testing.assert_allclose(
    leaf(tmp_path / "2"), alone(model, tmp_path, 2), rtol=1e-5
  )


@pytest.mark.parametrize("seeds", [(1, 2), (1,)])
def test_what_was_killed_goes_on_together_or_alone(model, tmp_path, seeds):
  """Each keeps a state of its own, as if it had trained alone."""
  with pytest.raises(Killed):
    erase_together.make(
      wanted(model, tmp_path, Twice(dies_at=3), (1, 2), {}), every=2
    )
  erasure = Twice()
  every = wanted(model, tmp_path, erasure, seeds, {})
  erase_together.make(every, every=2)
  assert not erasure.drawn
  for one in every:
    np.testing.assert_allclose(
      leaf(one.path.parent),
      alone(model, tmp_path, one.settings.seed), rtol=1e-5,
    )  # fmt: skip
    lines = (one.path.parent / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == [2, STEPS, 2, STEPS]
