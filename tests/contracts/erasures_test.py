"""What every erasure must do, whatever its paper: one row a method."""

import contextlib
import dataclasses
import fnmatch
import functools
import types

import jax
import numpy as np
import pytest

from tests.support import attacks_cases, compiled
from unlearning_jax import erasures, guidance, shapes, sharding
from unlearning_jax import stable_diffusion as stable
from unlearning_jax.concepts import make_concepts
from unlearning_jax.edits import (
  apply_to_params,
  check_base,
  load_edit,
  save_edit,
)
from unlearning_jax.experiments import erase, erase_together
from unlearning_jax.experiments import hooks as recording
from unlearning_jax.guidance import Guidance
from unlearning_jax.model import Model
from unlearning_jax.record import Memory
from unlearning_jax.record.workdir import Workdir

pytestmark = pytest.mark.usefixtures("quickest_compiler")
# Two steps, on as many rows as there are devices.
SHORT = {"num_steps": 2, "num_inference_steps": 2, "batch_size": 8}
DRAWN = SHORT | {"num_images": 8}
# Method -> hyperparameters of its row.
ERASURES = {
  "uce": [{}, {"preset": "uce2025"}, {"expand_prompts": True}],
  "rece": [
    {},
    {"recipe": "objects_hard"},
    {"preset": "paper"},
    {"rows": "joint", "regularizer": "both", "tolerance": 0.01},
  ],
  "time": [{}, {"augment": False}],
  "sld": [{}, {"preset": "max", "concept": "a moon"}],
  "negative_prompt": [{}, {"prompt": "a moon"}],
  "tests.support.toy_erasure": [{}],
  "mace": [
    {
      "num_prompts": 3,
      "num_steps": 2,
      "num_images": 2,
      "num_inference_steps": 2,
      "mask_source": "full",
    }
  ],
  "esd": [SHORT | {"train": "strict"}],
  "advunlearn": [
    SHORT
    | {
      "num_trajectories": 2,
      "warmup_steps": 1,
      "attack_steps": 1,
      "retain_batch": 1,
    }
  ],
  "concept_ablation": [DRAWN | {"expand_prompts": False}],
  # One weight at the threshold that moves on eight devices and not on one is
  # 1 % of a small leaf's change; the first row's mask has no such weights.
  "salun": [
    DRAWN | {"preset": preset, "saliency": saliency}
    for preset, saliency in (("fixed", "random"), ("reference", "gradient"))
  ],
  "resalign": [
    DRAWN
    | {
      "hypergrad": "first_order",
      "lanes": ("sgd/1e-2/2/0", "adam/1e-3/1/0"),
    }
  ],
  "meta_unlearning": [
    {
      "wrapped_hparams": tuple(f"{k}={v}" for k, v in SHORT.items())
      + ("train=strict",),
      "num_images": 8,
      "batch_size": 2,
      "num_inference_steps": 2,
      "lanes": ("adam/1e-3/1/0",),
    },
  ],
  "spm": [SHORT | {"anchors": 1}],
  "fmn": [
    DRAWN | {"learning_rate": 1e-4} | row
    for row in (
      {"words": 0},
      {"preset": "reference", "words": 2, "words_steps": 2},
    )
  ],
  "erasediff": [
    {
      "preset": preset,
      "num_images": 8,
      "batch_size": 8,
      "epochs": 2,
      "num_inference_steps": 2,
    }
    for preset in ("fixed", "reference")
  ],
}
# Those that answer with a map of text states.
MAPS = ("uce", "rece", "time")
# Those that train a network: their rows are slow tests, of a narrow one.
SLOW = (
  "mace", "esd", "concept_ablation", "salun", "erasediff", "fmn", "spm",
  "advunlearn", "resalign", "meta_unlearning",
)  # fmt: skip
# Those whose losses or thresholds are of noise.
EPSILON = (
  "esd", "concept_ablation", "salun", "erasediff", "spm", "sld", "advunlearn",
  "resalign", "meta_unlearning",
)  # fmt: skip
# How far packed edits may be from those made alone, as a share of the change.
# SPM's second loss is zero at first, and what rounding leaves of it counts a
# thousandfold.
ROUNDED = {"spm": 1e-2}
CONCEPTS = make_concepts(["star", "red star"], "circle", ["moon"])


def marked(name, *values, **options):
  marks = [pytest.mark.slow] if name in SLOW else []
  return pytest.param(name, *values, marks=marks, **options)


def every(names=ERASURES):
  """One test a method."""
  return pytest.mark.parametrize("name", [marked(name) for name in names])


def rows(names=ERASURES):
  """One test a row."""
  return pytest.mark.parametrize(
    "name, row",
    [
      marked(name, row, id=f"{name}-{row}")
      for name in names
      for row in range(len(ERASURES[name]))
    ],
  )


@pytest.fixture(scope="module")
def models():
  """By method: the Shapes model, or one that compiles in half the time."""
  sd, params = stable.load(shapes.model_folder())
  narrow, victim, _ = attacks_cases.make_world()
  trained = narrow, {**params, **victim.params}
  everywhere = sharding.replicated(sharding.make_mesh())
  return {
    name: (sd, sharding.place(params, everywhere))
    for names, (sd, params) in (
      (SLOW, trained), (ERASURES.keys() - SLOW, (sd, params)),
    )
    for name in names
  }  # fmt: skip


@pytest.fixture
def model(request, models):
  return models[request.node.callspec.params["name"]]


def run(name, row, model, concepts=CONCEPTS, hooks=erasures.NO_HOOKS):
  method = erasures.bind(name, ERASURES[name][row])
  return method(*model, concepts, jax.random.key(0), hooks)


@pytest.fixture(scope="module")
def made(models):
  """What a row makes; made once."""
  return functools.cache(lambda name, row=0: run(name, row, models[name]))


def same(first, second):
  assert type(first) is type(second)
  if isinstance(first, Guidance):
    assert first == second
    return
  assert first.tensors.keys() == second.tensors.keys()
  for name, value in first.tensors.items():
    np.testing.assert_array_equal(value, second.tensors[name])
  assert (first.base, first.concepts) == (second.base, second.concepts)


def test_every_method_has_a_row():
  assert set(erasures.methods()) == {n for n in ERASURES if "." not in n}


@every()
def test_hyperparameters_are_frozen_and_have_defaults(name):
  h = erasures.bind(name, {}).h
  field, *_ = dataclasses.fields(h)
  with pytest.raises(dataclasses.FrozenInstanceError):
    setattr(h, field.name, 1)
  assert erasures.module(name).NEEDS in erasures.NEEDS
  with pytest.raises(ValueError, match=f"mean {field.name}"):
    erasures.bind(name, {f"{field.name}s": 1})


@rows()
def test_only_what_it_declares_changes(name, row, model, made):
  patterns, params = erasures.module(name).CHANGES, model[1]
  edit = made(name, row)
  if isinstance(edit, Guidance):
    assert not patterns
    return
  edited = apply_to_params(edit, params)
  assert jax.tree.structure(edited) == jax.tree.structure(params)
  changed = 0
  old, new = (jax.tree_util.tree_leaves_with_path(p) for p in (params, edited))
  for (path, before), (_, after) in zip(old, new, strict=True):
    assert before.shape == after.shape and before.dtype == after.dtype
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
      assert after is before
    changed += not np.array_equal(before, after)
  assert changed
  check_base(edit, params)


@rows()
def test_a_second_call_gives_the_same_and_compiles_nothing(
  name, row, model, made
):
  first = made(name, row)
  with compiled.programs() as found:
    again = run(name, row, model)
  same(first, again)
  assert not found


@every()
def test_one_device_is_as_good_as_eight(name, model, made, monkeypatch):
  sd, params = model
  eight, devices = made(name), jax.devices()[:1]
  monkeypatch.setattr(jax, "local_devices", lambda *_, **__: devices)
  with sharding.alone():
    one = run(name, 0, (sd, jax.device_get(params)))
  if isinstance(one, Guidance):
    assert one == eight
    return
  for path, leaf in one.tensors.items():
    base = np.eye(len(leaf)) if name in MAPS else at(params, path)
    change = np.linalg.norm(leaf - base)
    assert np.linalg.norm(eight.tensors[path] - leaf) < 1e-2 * change


def at(params, path):
  """A leaf of the parameters, by the path that an edit gives it."""
  for key in path.split("/"):
    params = params[key]
  return np.asarray(params)


class Killed(Exception):
  pass


@every([name for name in ERASURES if name not in MAPS])
def test_killed_and_resumed_is_undisturbed(name, model, made):
  record, steps = Memory(quiet=True), []

  class Dying:
    """Batches that end in a kill, the first time."""

    def __init__(self, batches):
      self.batches = batches

    def __getitem__(self, step):
      steps.append(step)
      if steps == [0, 1]:
        raise Killed
      return self.batches[step]

  def start():
    """What a start of the program hooks in."""
    hooks = recording.recorded(record, 1)

    def trainer(loss, tx, trained, frozen, batches, *rest, **options):
      batches = Dying(batches)
      return hooks.trainer(loss, tx, trained, frozen, batches, *rest, **options)

    return dataclasses.replace(hooks, trainer=trainer)

  try:
    run(name, 0, model, hooks=start())
  except Killed:
    assert steps == [0, 1]
  same(made(name), run(name, 0, model, hooks=start()))
  assert steps in ([], [0, 1, 1])
  recording.tidy(record)


@every([*SLOW, "tests.support.toy_erasure"])
def test_packed_it_makes_what_it_makes_alone(name, model, made, tmp_path):
  sd, params = model
  wanted, erasure = [], erasures.bind(name, ERASURES[name][0])
  for seed in (0, 1):
    given = types.SimpleNamespace(erasure=erasure, phrases=CONCEPTS, seed=seed)
    wanted.append(
      erase_together.Wanted(
        given, Workdir(tmp_path / str(seed), {}),
        Model(sd, params), contextlib.nullcontext,
      )
    )  # fmt: skip
  with pytest.MonkeyPatch.context() as patch:
    # A narrow model has no prompts that a probe could read.
    patch.setattr(erase, "probed", lambda *args, **options: None)
    erase_together.make(wanted)
  first, other = (load_edit(one.path) for one in wanted)
  alone = made(name)
  assert first.tensors.keys() == alone.tensors.keys()
  for path, leaf in alone.tensors.items():
    change = np.linalg.norm(leaf - at(params, path))
    far = np.linalg.norm(first.tensors[path] - leaf) / change
    assert far < ROUNDED.get(name, 1e-3)
  if name in SLOW:
    assert any(
      np.any(leaf != other.tensors[path])
      for path, leaf in first.tensors.items()
    )


@every()
def test_it_survives_its_file(name, made, tmp_path):
  first = made(name)
  if isinstance(first, Guidance):
    guidance.save(first, tmp_path / "guidance.json")
    same(first, guidance.load(tmp_path / "guidance.json"))
    return
  save_edit(first, tmp_path / "edit.safetensors")
  same(first, load_edit(tmp_path / "edit.safetensors"))


@every()
def test_phrases_that_cannot_be_erased(name, model):
  for concepts, word in (
    ([], "concept"),
    (make_concepts("star " * 60, "circle"), "token"),
  ):
    with pytest.raises(ValueError, match=word):
      run(name, 0, model, concepts)


@pytest.mark.parametrize("name", EPSILON)
def test_a_velocity_model_is_refused(name, model):
  sd, params = model
  schedule = dataclasses.replace(sd.schedule, prediction_type="v_prediction")
  wrong = (dataclasses.replace(sd, schedule=schedule), params)
  with pytest.raises(ValueError, match="prediction_type.*epsilon"):
    run(name, 0, wrong)


def test_a_module_of_ones_own_that_is_not_there():
  for name in ("tests.support.toy_erasur", "tests.support:toy_erasur"):
    with pytest.raises(ValueError, match="method=.tests.support.toy_erasur."):
      erasures.bind(name, {})
  whole = erasures.bind("tests.support.toy_erasure", {})
  assert isinstance(whole, erasures.Erasure) and whole.h.num_steps == 2
