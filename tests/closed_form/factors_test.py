"""Solutions as factors of few rows, against those of whole matrices."""

import dataclasses

import numpy as np
import pytest
import scipy.linalg

from tests.support import closed_form_cases as cases
from tests.support.closed_form_cases import relative
from unlearning_jax import closed_form
from unlearning_jax.closed_form.derivation import Products
from unlearning_jax.erasures import rece, uce

RNG = np.random.default_rng(5)
D = 12
PAIRS = [
  (RNG.normal(size=(n, D)) + 3, RNG.normal(size=(n, D)) + 3, e)
  for n, e in ((2, 0.5), (3, 2.0))
]
HELD = closed_form.preserve_sums(RNG.normal(size=(4, D)) + 3, 0.7)


def summed(pairs):
  sums = HELD
  for pair in pairs:
    sums += closed_form.erase_sums(*pair)
  return sums


def test_equals_the_solution_of_the_sums():
  step, found = closed_form.solve_rows(PAIRS, HELD, 0.3)
  whole, expected = closed_form.solve(summed(PAIRS), 0.3)
  assert step.left.shape == step.right.shape == (5, D)
  assert relative(step.after(np.eye(D)), whole) < 1e-13
  other = RNG.normal(size=(3, D))
  assert relative(step.after(other), other @ whole) < 1e-13
  assert found["map_change"] == pytest.approx(expected["map_change"], rel=1e-12)
  assert found["solve_error"] < 1e-12
  condition = expected["condition_number"]
  assert found["condition_number"] == pytest.approx(condition, rel=1e-9)


@pytest.mark.parametrize("copies", [1, 3])
def test_pairs_are_solved_alike_whether_few_or_many(copies):
  # Fifteen rows are more than dimensions, and solved by their sums.
  held = closed_form.preserve_sums(RNG.normal(size=(4, D)), 1.0)
  pairs = [(c, a, e / copies) for c, a, e in PAIRS] * copies
  got, found = closed_form.solve_pairs(pairs, held, 0.7, 0.3)
  expected, once = closed_form.solve_pairs(PAIRS, held, 0.7, 0.3)
  assert relative(got, expected) < 1e-12
  assert found["erased_rows"] == copies * once["erased_rows"]
  assert found["preserved_rows"] == once["preserved_rows"] == 4
  assert found["residual"] == pytest.approx(once["residual"], rel=1e-10)


def test_an_anchor_that_means_the_same_is_the_identity():
  pairs = [(c, c, e) for c, _, e in PAIRS]
  step, found = closed_form.solve_rows(pairs, HELD, 0.3)
  assert np.array_equal(step.after(np.eye(D)), np.eye(D))
  assert found["map_change"] == found["solve_error"] == 0.0


def test_products_follow_the_map():
  gram = RNG.normal(size=(D, D))
  gram = gram @ gram.T
  reached = np.eye(D) + 0.3 * RNG.normal(size=(D, D))
  products = Products.of(gram, reached)
  for pairs in (PAIRS, PAIRS[:1]):
    step, _ = closed_form.solve_rows(pairs, HELD, 0.3)
    reached, products = step.after(reached), products.after(step)
    expected = Products.of(gram, reached)
    assert relative(products.cross, expected.cross) < 1e-13
    assert relative(products.seen, expected.seen) < 1e-13
    assert np.array_equal(products.seen, products.seen.T)


@pytest.mark.parametrize(
  "pairs, lamb, message",
  [
    (PAIRS, -1.0, "lamb=-1"),
    ([(*PAIRS[0][:2], np.inf)], 0.1, "erase_scale=inf"),
    ([(PAIRS[0][0], PAIRS[1][1], 1.0)], 0.1, "source rows"),
    ([(PAIRS[0][0] * np.nan, PAIRS[0][1], 1.0)], 0.1, "source text states"),
    (PAIRS[:1], 0.0, "lamb=0.0: not safely positive|lamb=0.0: condition"),
  ],
)
def test_bad_input(pairs, lamb, message):
  with pytest.raises(ValueError, match=message):
    closed_form.solve_rows(pairs, HELD, lamb)


@pytest.mark.parametrize("concepts", [1, 2])
def test_one_factorisation_and_two_more_an_epoch(concepts, monkeypatch):
  golden = cases.Golden("rece_unsafe")
  calls = []
  factorise = scipy.linalg.cho_factor
  monkeypatch.setattr(
    scipy.linalg,
    "cho_factor",
    lambda *a, **k: calls.append(1) or factorise(*a, **k),
  )
  task = golden.task("uce2023", golden.settings["uce"]["preserve"])
  task = dataclasses.replace(task, pairs=task.pairs[:concepts])
  uce.solve(task)
  assert len(calls) == 1
  how = rece.Epochs(epochs=3, lam_r=0.1)
  rece.solve(task, golden.gram, 0.1 * task.held, how, {})
  assert len(calls) == 1 + 1 + 2 * 3
