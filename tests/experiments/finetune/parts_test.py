"""Where a fine-tuning run begins, and what a state of it stands for."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.tunings import given, one_device
from unlearning_jax import finetune, lora, sharding
from unlearning_jax import model as models
from unlearning_jax.concepts import Concept
from unlearning_jax.edits import Edit
from unlearning_jax.experiments import finetune as tuning
from unlearning_jax.experiments.finetune import parts
from unlearning_jax.experiments.finetune.settings import Defense
from unlearning_jax.projections import cross_attention_kernels
from unlearning_jax.record import Memory

LARGE = 2**14


@pytest.fixture(scope="module")
def model():
  found = models.load("shapes")
  return found.sd, found.params


def first_device_bytes(arrays):
  shards = (shard for array in arrays for shard in array.addressable_shards)
  return sum(s.data.nbytes for s in shards if s.device == jax.devices()[0])


def test_no_device_has_the_whole_first_state(model, monkeypatch):
  # Else everything in this small model is too small to be split.
  split = functools.partial(sharding.param_sharding, min_bytes=LARGE)
  monkeypatch.setattr(sharding, "param_sharding", split)
  chosen = given("full", ema_decay=0.9)
  mesh = sharding.make_mesh(data=1, fsdp=8)
  before = {id(array) for array in jax.live_arrays()}
  part, _, state, _ = tuning.prepare(*model, None, chosen, mesh)
  made = [array for array in jax.live_arrays() if id(array) not in before]
  leaves = jax.tree.leaves(state)
  large = [
    leaf
    for leaf in leaves
    if leaf.nbytes >= LARGE and any(n % 8 == 0 for n in leaf.shape)
  ]
  # Parameters, both moments, the average.
  assert len(large) > 4 * 100
  for leaf in large:
    sizes = {shard.data.size for shard in leaf.addressable_shards}
    assert sizes == {leaf.size // 8}
  assert first_device_bytes(made) < sum(leaf.nbytes for leaf in leaves) / 6
  for tree in (state.params, state.ema):
    jax.tree.map(np.testing.assert_array_equal, tree, part.trained)

  def step(state, frozen, batch, key):
    return state._replace(step=state.step + 1), {}

  ended = finetune.train(
    state, step, {}, [{"x": np.zeros(8)}], jax.random.key(0), mesh=mesh,
    num_steps=1, watch=finetune.Watch(),
  )  # fmt: skip
  # The loop takes over these very arrays: there is no second state.
  assert all(leaf.is_deleted() for leaf in leaves) and int(ended.step) == 1


def test_a_state_on_one_device_is_what_it_was(model):
  chosen = given(ema_decay=0.9)
  part, _, state, _ = tuning.prepare(*model, None, chosen, one_device())
  rest = dataclasses.asdict(chosen.optimizer)
  rate = np.float32(rest.pop("learning_rate"))
  tx = finetune.optimizer(rate, chosen.num_steps, **rest)
  wanted = finetune.init_state(part.trained, tx)
  assert jax.tree.structure(state) == jax.tree.structure(wanted)
  jax.tree.map(np.testing.assert_array_equal, state, wanted)


@pytest.mark.parametrize("kind", ["project", "anchor"])
def test_a_defense_needs_an_erasure(kind, model):
  chosen = given(**{"defense.kind": kind})
  with pytest.raises(ValueError, match="nothing is erased.*--edit"):
    tuning.prepare(*model, None, chosen, one_device())


def test_runs_that_differ_in_model_rate_and_seed_share_their_program(model):
  changes = {"lora.targets": "kv"}
  _, step, state, frozen = tuning.prepare(
    *model, None, given(**changes), one_device()
  )
  others = {"optimizer.learning_rate": 0.0, "seed": 7}
  chosen = given(argument="tiny,only=object/circle", **changes, **others)
  _, again, other, zero = tuning.prepare(*model, None, chosen, one_device())
  assert again is step
  assert (frozen["learning_rate"], zero["learning_rate"]) == (
    pytest.approx(1e-3), 0,
  )  # fmt: skip
  path = next(iter(state.params))
  assert (state.params[path]["down"] != other.params[path]["down"]).any()
  # What a program is made of does make another.
  part = tuning.prepare(*model, None, given(**changes), one_device()).part
  for key, value in (("num_steps", 200), ("accumulate", 2), ("ema_decay", 0.9)):
    changed = dataclasses.replace(chosen, **{key: value})
    assert tuning.programs(model[0], part.join, changed)[1] is not step


def test_a_flag_can_leave_clipping_and_average_out(model):
  """By 0: it cannot say None."""
  made = []
  for off in (None, 0.0):
    changes = {"optimizer.clip_norm": off, "ema_decay": off}
    chosen = given(**{"lora.targets": "kv"}, **changes)
    part, step, state, _ = tuning.prepare(*model, None, chosen, one_device())
    assert state.ema == ()
    made.append(step)
    tuned = tuning.tuned_params(*model, part, state, None, chosen)
    jax.tree.map(np.testing.assert_array_equal, tuned, model[1])
  assert made[0] is made[1]


def test_the_base_is_no_start_for_a_study():
  base = {"unet": {"a": np.zeros(2), "b": np.ones(2)}}
  same = {"unet": {"a": base["unet"]["a"], "b": np.ones(2)}}
  with pytest.raises(ValueError, match="mine: the model to tune is the base"):
    tuning.check_start(base, same, "mine")
  same["unet"]["b"] = np.array([1.0, 2.0])
  tuning.check_start(base, same, "mine")


# --- What is exported ---


def ended(model, **changes):
  """Record, partition, a last state as of a run that trained, settings."""
  chosen = given(**{"lora.targets": "kv", "lora.alpha": 6.0}, **changes)
  part, _, state, _ = tuning.prepare(*model, None, chosen, one_device())
  moved = {
    name: jax.tree.map(
      lambda leaf, by=by: jnp.full_like(leaf, by), part.trained
    )
    for name, by in (("params", 0.01), ("ema", 0.02))
    if chosen.ema_decay is not None or name == "params"
  }
  return Memory(quiet=True), part, state._replace(**moved), chosen


def defended(chosen, **options):
  return dataclasses.replace(chosen, defense=Defense(**options))


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_the_adapters_are_the_model_that_is_measured(ema_decay, model):
  sd, params = model
  run, part, state, chosen = ended(model, ema_decay=ema_decay)
  parts.export(run, part, state, chosen)
  adapters = lora.load(run.path / "lora.safetensors", params)
  measured = tuning.tuned_params(sd, params, part, state, None, chosen)
  merged = lora.merge({"unet": params["unet"]}, adapters)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-6),
    merged["unet"],
    measured["unet"],
  )


def test_reassertion_has_the_weight_that_is_asked_for(model):
  sd, params = model
  concept = Concept("a star", "a circle", ("a square",), "object")
  edit = Edit(np.eye(2), "base", "uce", (concept,), {})
  _, part, state, chosen = ended(model)
  apart = []
  erased = tuning.phrase_states(sd, params, ["a star"])
  said = cross_attention_kernels(params)
  for weight in (1.0, 100.0):
    held = defended(chosen, kind="reassert", weight=weight)
    tuned = tuning.tuned_params(sd, params, part, state, edit, held)
    kernels = cross_attention_kernels(tuned)
    gaps = (erased @ (kernels[path] - said[path]) for path in said)
    apart.append(sum(float(np.sum(np.square(gap))) for gap in gaps))
  assert 0 < apart[1] < 0.1 * apart[0]


def test_what_adapters_cannot_say_is_not_exported(model, caplog):
  run, part, state, chosen = ended(model)
  parts.export(run, part, state, defended(chosen, kind="reassert"))
  assert not (run.path / "lora.safetensors").exists()
  assert "no lora.safetensors: defense.kind='reassert'" in caplog.text
