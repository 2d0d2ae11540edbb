"""What every erasure must do, whatever its paper: one row a method."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unlearning_jax import erasures, shapes, stable_diffusion
from unlearning_jax.concepts import make_concepts
from unlearning_jax.edits import (
  Edit,
  apply_to_context,
  apply_to_params,
  check_base,
  edit_between,
  load_edit,
  save_edit,
)
from unlearning_jax.projections import cross_attention_kernels

# Method -> hyperparameters of its row.
ERASURES = {
  "uce": [{}, {"preset": "uce2025"}, {"expand_prompts": True}],
  "rece": [
    {},
    {"recipe": "objects_hard"},
    {"preset": "paper"},
    {"rows": "joint", "regulariser": "both", "tolerance": 0.01},
  ],
  "time": [{}, {"augment": False}],
  # From here two steps, of the text projections alone.
  "mace": [
    {
      "num_prompts": 3,
      "num_steps": 2,
      "num_images": 2,
      "image_steps": 2,
      "mask_source": "full",
    }
  ],
  "esd": [{"train": "strict", "num_steps": 2, "num_inference_steps": 2}],
  "concept_ablation": [
    {"images": 2, "batch_size": 2, "num_steps": 2, "num_inference_steps": 2}
  ],
}
# Those that answer with a map of text states; the others change weights, by
# training: their rows are slow tests.
MAPS = ("uce", "rece", "time")


def cost(name):
  return [] if name in MAPS else [pytest.mark.slow]


def rows(names):
  return [
    pytest.param(name, hparams, id=f"{name}-{i}", marks=cost(name))
    for name in names
    for i, hparams in enumerate(ERASURES[name])
  ]


# How near its anchor the concept must come, as a share of the way. RECE goes
# on to erase derived states, and on so narrow a model gives some of it back.
GAP = {"uce": 0.25, "rece": 0.75, "time": 0.25}
CONCEPTS = make_concepts(["star", "red star"], "circle", ["moon"])


@pytest.fixture(scope="module")
def model():
  return stable_diffusion.load(shapes.model_folder())


def run(name, model, concepts=CONCEPTS, **hparams):
  """The method's edit, as `launch.erase` makes it."""
  module = __import__(f"unlearning_jax.erasures.{name}", fromlist=["erase"])
  made = module.erase(*model, concepts, jax.random.key(0), **hparams)
  if isinstance(made, Edit):
    return made
  return edit_between(
    model[1], made, method=name, concepts=concepts, diagnostics={}
  )


def same(first, second):
  assert first.tensors.keys() == second.tensors.keys()
  for name, value in first.tensors.items():
    np.testing.assert_array_equal(value, second.tensors[name])


def states(model, edit, prompts):
  sd, params = model
  ids = stable_diffusion.tokenize(sd, prompts)
  context = stable_diffusion.encode_text(sd, params, ids)
  if edit is None:
    return np.asarray(context)
  return np.asarray(apply_to_context(edit, context))


def test_every_method_has_a_row():
  assert set(erasures.methods()) == set(ERASURES)


@pytest.mark.parametrize("name, hparams", rows(ERASURES))
def test_only_text_projections_change(name, hparams, model):
  params = model[1]
  edited = apply_to_params(run(name, model, **hparams), params)
  assert jax.tree.structure(edited) == jax.tree.structure(params)
  changed = []
  old, new = (jax.tree_util.tree_leaves_with_path(p) for p in (params, edited))
  for (path, before), (_, after) in zip(old, new, strict=True):
    assert before.shape == after.shape and before.dtype == after.dtype
    if after is not before:
      changed.append(jax.tree_util.keystr(path, simple=True, separator="/"))
      assert not np.array_equal(before, after)
  expected = cross_attention_kernels(params)
  assert sorted(changed) == sorted(f"unet/{path}" for path in expected)


@pytest.mark.parametrize("name, hparams", rows(MAPS))
def test_the_concept_moves_to_its_anchor_and_preserved_ones_stay(
  name, hparams, model
):
  edit = run(name, model, **hparams)
  prompts = ["star", "circle", "moon"]
  before, after = (states(model, e, prompts)[:, 1] for e in (None, edit))
  # The last subject token of "star" now means what that of "circle" meant.
  gap = np.linalg.norm(after[0] - before[1])
  assert gap < GAP[name] * np.linalg.norm(before[0] - before[1])
  moved = np.linalg.norm(after - before, axis=1)
  assert moved[2] < 0.5 * moved[0]


@pytest.mark.parametrize("name, hparams", rows(MAPS))
def test_weights_and_text_states_are_the_same_edit(name, hparams, model):
  sd, params = model
  edit = run(name, model, **hparams)
  edited = apply_to_params(edit, params)
  context = states(model, None, ["a red star", "a house"])
  noise = np.random.default_rng(0).normal(size=(2, *sd.latent_shape))
  predict = jax.jit(
    lambda p, c: stable_diffusion.predict_noise(
      sd, p, jnp.asarray(noise, jnp.float32), jnp.array([900, 20]), c
    )
  )
  by_weights = np.asarray(predict(edited, context))
  by_states = predict(params, apply_to_context(edit, context))
  base = np.asarray(predict(params, context))
  assert np.abs(by_weights - base).max() > 1e-3
  np.testing.assert_allclose(by_weights, by_states, atol=2e-5)


@pytest.mark.parametrize("name, hparams", rows(ERASURES))
def test_the_same_call_gives_the_same_edit(name, hparams, model):
  first, second = (run(name, model, **hparams) for _ in range(2))
  same(first, second)
  assert first.base == second.base
  check_base(first, model[1])


@pytest.mark.parametrize(
  "name", [pytest.param(name, marks=cost(name)) for name in ERASURES]
)
def test_an_edit_survives_its_file(name, model, tmp_path):
  edit = run(name, model, **ERASURES[name][0])
  save_edit(edit, tmp_path / "edit.safetensors")
  again = load_edit(tmp_path / "edit.safetensors")
  same(edit, again)
  assert (again.concepts, again.base) == (edit.concepts, edit.base)


@pytest.mark.parametrize("name", ERASURES)
def test_hyperparameters_are_keywords_with_defaults(name):
  module = __import__(f"unlearning_jax.erasures.{name}", fromlist=["erase"])
  parameters = list(inspect.signature(module.erase).parameters.values())
  assert [p.name for p in parameters[:4]] == ["sd", "params", "concepts", "key"]
  for parameter in parameters[4:]:
    assert parameter.kind is parameter.KEYWORD_ONLY
    assert parameter.default is not parameter.empty


@pytest.mark.parametrize("name", ERASURES)
def test_phrases_that_cannot_be_erased(name, model):
  for concepts, word in (
    ([], "concept"),
    (make_concepts("star " * 60, "circle"), "token"),
  ):
    with pytest.raises(ValueError, match=word):
      run(name, model, concepts)
