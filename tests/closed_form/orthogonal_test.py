"""UCE's "tensor" against least squares, and what it may not do."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import closed_form_cases as cases
from tests.support.closed_form_cases import relative
from unlearning_jax import closed_form
from unlearning_jax.concepts import make_concepts
from unlearning_jax.edits import apply_to_params
from unlearning_jax.erasures import Hooks, uce
from unlearning_jax.projections import cross_attention_kernels

RNG = np.random.default_rng(3)
D = 9
KERNELS = {f"b{o}/attn2/to_k/kernel": RNG.normal(size=(D, o)) for o in (4, 7)}
# Phrases of one and three rows, with scales of their own.
PAIRS = [
  (RNG.normal(size=(n, D)), RNG.normal(size=(n, D)), e)
  for n, e in ((1, 0.7), (3, 2.0))
]
HELD = RNG.normal(size=(5, D))
P, LAMB = 0.3, 0.2


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return cases.tiny(tmp_path_factory.mktemp("tiny"))


def targets(w):
  """The release's, step by step: the anchor less its part along the value."""
  for source, target, _ in PAIRS:
    old, new = source @ w.T, target @ w.T
    along = old / np.linalg.norm(old)
    yield new - np.sum(along * new) * along


def solved(kernels=None, pairs=PAIRS, **scales):
  held = closed_form.preserve_sums(HELD, 1.0)
  scales = {"preserve_scale": P, "lamb": LAMB} | scales
  return closed_form.solve_orthogonal(
    KERNELS if kernels is None else kernels, pairs, held, **scales
  )


def test_is_the_least_squares_solution():
  changed, found = solved()
  for path, kernel in KERNELS.items():
    w = kernel.T
    weights = [np.full(len(c), e) for c, _, e in PAIRS]
    rows = [*(c for c, _, _ in PAIRS), HELD, np.eye(D)]
    wanted = [*targets(w), HELD @ w.T, w.T]
    scale = [*weights, np.full(len(HELD), P), np.full(D, LAMB)]
    root = np.sqrt(np.concatenate(scale))[:, None]
    expected, *_ = np.linalg.lstsq(
      root * np.concatenate(rows), root * np.concatenate(wanted)
    )
    assert relative(changed[path] - kernel, expected - kernel) < 1e-12
  assert found["solve_error"] < 1e-12
  assert found["erased_rows"] == 4 and found["preserved_rows"] == 5
  assert found["share"][0] < found["share"][1]


def test_what_is_erased_becomes_orthogonal_to_itself():
  pairs = [(c, a, 1e4) for c, a, _ in PAIRS]
  changed, found = solved(pairs=pairs, preserve_scale=0.0, lamb=1e-4)
  for path, kernel in KERNELS.items():
    for c, _, _ in pairs:
      before, after = c @ kernel, c @ changed[path]
      cosine = np.sum(before * after) / np.linalg.norm(before)
      assert abs(cosine) < 1e-6 * np.linalg.norm(after)
  assert found["residual"] < 1e-6


def test_an_orthogonal_anchor_makes_it_replace():
  # One projection that shows phrase and anchor as orthogonal.
  kernel = np.eye(D)
  c, a = np.eye(D)[:1], np.eye(D)[1:2]
  changed, found = solved({"k": kernel}, [(c, a, 1.0)])
  held = closed_form.preserve_sums(HELD, 1.0)
  context_map, _ = closed_form.solve_pairs([(c, a, 1.0)], held, P, LAMB)
  assert relative(changed["k"], context_map.T) < 1e-12
  assert found["share"] == [0.0, 0.0]


@pytest.mark.parametrize("preset", uce.PRESETS)
def test_erases_a_model(model, preset):
  sd, params = model
  concepts = make_concepts(["ab c", "xyz"], ["art", "d"], ["moon"], "art")
  kept = []
  edit = uce.erase(
    sd,
    params,
    concepts,
    None,
    uce.Hparams(preset=preset, technique="tensor"),
    Hooks(keep=kept.append),
  )
  # An edit of projections: nothing to solve again, and no map.
  assert not kept and edit.context_map is None
  assert edit.method == f"{preset} tensor"
  kernels = cross_attention_kernels(params)
  assert set(edit.leaves) == {f"unet/{path}" for path in kernels}
  assert edit.diagnostics["changed_leaves"] == len(kernels)
  task = uce.encode_task(sd, params, concepts, preset=preset)
  expected, _ = uce.solve_tensor(task, kernels)
  new = apply_to_params(edit, params)
  for path, value in cross_attention_kernels(new).items():
    np.testing.assert_array_equal(value, np.float32(expected[path]))
    assert value.dtype == jnp.float32


def test_templates_are_phrases_of_their_own(model):
  concepts = make_concepts("xyz", "d", task="art")
  edit = uce.erase(
    *model,
    concepts,
    None,
    uce.Hparams(technique="tensor", expand_prompts=True, preset="uce2025"),
  )
  assert edit.diagnostics["erased_rows"] == 6


def test_bad_input():
  with pytest.raises(ValueError, match="lamb=-1.0"):
    solved(lamb=-1.0)
  with pytest.raises(ValueError, match="preserve_scale=nan"):
    solved(preserve_scale=np.nan)
  with pytest.raises(ValueError, match="lamb=0.0.*not safely positive"):
    solved(pairs=PAIRS[:1], preserve_scale=0.0, lamb=0.0)
  with pytest.raises(ValueError, match="unet/k maps erased phrase 1 to zero"):
    solved({"k": np.ones((D, 2))}, [*PAIRS[:1], (np.zeros((1, D)),) * 2 + (1,)])


def test_scales_are_checked_before_anything_is_encoded(model):
  for name in ("erase_scale", "preserve_scale", "lamb"):
    with pytest.raises(ValueError, match=f"{name}=-1"):
      uce.erase(
        *model,
        make_concepts("dog"),
        None,
        uce.Hparams(technique="tensor", **{name: -1.0}),
      )
