"""Grids, batches of single edits and their images against one at a time."""

import functools

import jax
import numpy as np
import pytest

from tests.closed_form.solve_test import (
  HELD,
  SOURCE,
  TARGET,
  D,
  relative,
  states,
)
from unlearning_jax import closed_form, sampling, shapes, stable_diffusion
from unlearning_jax.closed_form import derivation, sweeps
from unlearning_jax.concepts import make_concepts
from unlearning_jax.edits import apply_to_context
from unlearning_jax.erasures import uce

ERASED = closed_form.erase_sums(SOURCE, TARGET, 1.0)
KEPT = closed_form.preserve_sums(HELD, 1.0)
SCALES = {"lamb": 0.5, "erase_scale": 1.3, "preserve_scale": 0.7}


def direct(lamb, erase_scale, preserve_scale):
  sums = erase_scale * ERASED + preserve_scale * KEPT
  return closed_form.solve(sums, lamb)[0]


@pytest.mark.parametrize("name", SCALES)
def test_a_grid_is_a_solve_at_each_value(name):
  values = [0.05, 0.5, 4.0, 70.0]
  if name != "lamb":
    values.append(0.0)
  maps = sweeps.grid(name, values, ERASED, KEPT, **SCALES)
  for value, context_map in zip(values, maps, strict=True):
    expected = direct(**(SCALES | {name: value}))
    # eigh's error grows with the condition number of what stays fixed.
    assert relative(context_map, expected) < 1e-10
  assert relative(maps[0], maps[2]) > 1e-2


def test_a_grid_at_the_width_of_stable_diffusion():
  # A shared mean, as real text states have: condition numbers of 1e5.
  source, target, held = (
    states(76, seed, 768) + 27 * np.eye(768)[0] for seed in range(3)
  )
  erased = closed_form.erase_sums(source, target, 1.0)
  kept = closed_form.preserve_sums(held, 1.0)
  for name in SCALES:
    values = [0.1, 1.0]
    maps = sweeps.grid(name, values, erased, kept, **SCALES)
    for value, context_map in zip(values, maps, strict=True):
      one = SCALES | {name: value}
      sums = one["erase_scale"] * erased + one["preserve_scale"] * kept
      expected = closed_form.solve(sums, one["lamb"])[0]
      assert relative(context_map, expected) < 1e-9


def test_one_decomposition_a_grid(monkeypatch):
  calls = []
  for module, name in ((np.linalg, "eigh"), (sweeps.scipy.linalg, "eigh")):
    real = getattr(module, name)
    monkeypatch.setattr(
      module, name, lambda *a, real=real: (calls.append(1), real(*a))[1]
    )
  for name in SCALES:
    calls.clear()
    sweeps.grid(name, np.linspace(0.1, 9, 50), ERASED, KEPT, **SCALES)
    assert len(calls) == 1


def test_derivations_of_a_grid():
  rng = np.random.default_rng(0)
  w = rng.normal(size=(30, D))
  gram, reached = w.T @ w, np.eye(D) + 0.1 * rng.normal(size=(D, D))
  ridges = [1e-3, 0.1, 10.0]
  cross = reached.T @ gram
  found = sweeps.ridge_grid(cross @ reached, cross @ SOURCE.T, ridges)
  for lam_r, derived in zip(ridges, found, strict=True):
    expected = derivation.derive(gram, reached, SOURCE, lam_r)
    assert relative(derived.T, expected) < 1e-10


def test_what_is_no_grid():
  for vary, values, change, message in (
    ("lambda", [1.0], {}, "did you mean 'lamb'"),
    ("lamb", [1.0, -1.0], {}, "lamb=-1"),
    ("erase_scale", [np.nan], {}, "erase_scale=nan"),
    ("lamb", [1.0], {"preserve_scale": -1.0}, "preserve_scale=-1"),
    ("lamb", [1.0, 0.0], {}, "ridge=0.0: not safely positive definite"),
    ("erase_scale", [1.0], {"lamb": 0.0}, "erase_scale grid at lamb=0"),
  ):
    with pytest.raises(ValueError, match=message):
      sweeps.grid(vary, values, ERASED, KEPT, **(SCALES | change))


def padded(rows, count):
  return np.concatenate([rows, np.zeros((count - len(rows), D))])


def test_single_edits_in_one_batch():
  pairs = [(states(n, 10 + n), states(n, 20 + n)) for n in (1, 3, 5)]
  source, target = (
    np.stack([padded(pair[side], 5) for pair in pairs]) for side in (0, 1)
  )
  batch = sweeps.singles(source, target, KEPT, **SCALES)
  assert len(batch) == 3
  for i, (c, a) in enumerate(pairs):
    sums = closed_form.erase_sums(c, a, SCALES["erase_scale"])
    sums += SCALES["preserve_scale"] * KEPT
    expected = closed_form.solve(sums, SCALES["lamb"])[0]
    assert relative(batch.context_map(i), expected) < 1e-11
  for change, message in (
    ({"erase_scale": 0.0}, "erases nothing"),
    ({"lamb": 0.0}, "not positive definite"),
    ({"lamb": -1.0}, "lamb=-1"),
  ):
    with pytest.raises(ValueError, match=message):
      sweeps.singles(source, target, KEPT, **(SCALES | change))
  with pytest.raises(ValueError, match="target rows"):
    sweeps.singles(source, target[:2], KEPT, **SCALES)
  with pytest.raises(ValueError, match="NaN"):
    sweeps.singles(source * np.nan, target, KEPT, **SCALES)


@pytest.fixture(scope="module")
def model():
  return stable_diffusion.load(shapes.model_folder())


PROMPTS, SEEDS = ["a red star", "a house", "two moons"], [3, 4, 5]
OPTIONS = {"num_steps": 4, "guidance_scale": 3.0, "sampler": "dpm++2m"}


def test_many_models_draw_in_one_batch(model):
  sd, params = model
  edits = [
    uce.erase(sd, params, make_concepts(name, "circle"))
    for name in ("star", "house")
  ]
  maps = [np.eye(len(edits[0].context_map))] + [e.context_map for e in edits]
  got = np.zeros((3, 3), object)
  # Five rows a batch: models share batches, and the last is filled up.
  for pairs, images in sweeps.generate(
    sd, params, maps, PROMPTS, SEEDS, batch_size=5, **OPTIONS
  ):
    assert len(pairs) == len(images)
    for (m, row), image in zip(pairs, images, strict=True):
      got[m, row] = image
  alone = []
  for edit in [None, *edits]:
    change = edit and functools.partial(apply_to_context, edit)
    batches = sampling.generate(
      sd, params, PROMPTS, SEEDS, edit_context=change, batch_size=5, **OPTIONS
    )
    alone.append(np.concatenate(list(batches)))
  for m in range(3):
    for row in range(3):
      # The maps meet the states in another order of additions.
      off = np.abs(got[m, row].astype(int) - alone[m][row])
      assert off.max() <= 2 and off.mean() < 0.05
  assert np.abs(alone[1][0].astype(int) - alone[0][0]).mean() > 2


def test_maps_are_applied_at_full_precision():
  args = np.zeros((2, D, D), "f4"), np.zeros(3, int), np.zeros((3, 4, D), "f4")
  program = str(jax.make_jaxpr(sweeps.map_rows)(*args))
  assert program.count("dot_general") == 1
  assert "Precision.HIGHEST, Precision.HIGHEST" in program


def test_what_cannot_be_drawn(model):
  sd, params = model
  eye = np.eye(sd.context_shape[1])
  for maps, seeds, message in (
    ([], SEEDS, "no context map"),
    ([eye, np.eye(3)], SEEDS, r"context map 1 is \(3, 3\)"),
    ([eye], [1], "3 prompts but 1 seeds"),
  ):
    with pytest.raises(ValueError, match=message):
      next(sweeps.generate(sd, params, maps, PROMPTS, seeds))
