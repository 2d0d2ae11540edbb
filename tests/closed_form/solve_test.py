"""The algebra against independent float64 oracles."""

import numpy as np
import pytest

from unlearning_jax import closed_form as cf

D, LAMB, E, P = 12, 0.3, 0.7, 1.9


def states(n, seed=0, width=D):
  """Rows with a large common part, as CLIP's have."""
  rng = np.random.default_rng(seed)
  return rng.normal(size=(n, width)) + 2 * rng.normal(size=width)


SOURCE, TARGET, HELD = states(5, 1), states(5, 2), states(4, 3)
WEIGHTS = [
  np.random.default_rng(i).normal(size=(o, D)) for i, o in enumerate((7, 9))
]


def problem(e=E, p=P, source=SOURCE, target=TARGET, held=HELD):
  return cf.erase_sums(source, target, e) + cf.preserve_sums(held, p)


def context_map(lamb=LAMB, **kwargs):
  return cf.solve(problem(**kwargs), lamb)[0]


def relative(a, b):
  return np.linalg.norm(a - b) / np.linalg.norm(b)


def gradient(w, new, lamb=LAMB):
  """Of half the objective, by the chain rule and nothing else."""
  return (
    E * (new @ SOURCE.T - w @ TARGET.T) @ SOURCE
    + P * ((new - w) @ HELD.T) @ HELD
    + lamb * (new - w)
  )


def loss(w, new):
  return (
    E * np.sum((new @ SOURCE.T - w @ TARGET.T) ** 2)
    + P * np.sum(((new - w) @ HELD.T) ** 2)
    + LAMB * np.sum((new - w) ** 2)
  )


@pytest.mark.parametrize("w", WEIGHTS)
def test_textbook_normal_equations(w):
  left = LAMB * w + E * w @ TARGET.T @ SOURCE + P * w @ HELD.T @ HELD
  right = LAMB * np.eye(D) + E * SOURCE.T @ SOURCE + P * HELD.T @ HELD
  expected = left @ np.linalg.inv(right)
  assert relative(w @ context_map(), expected) < 1e-12


@pytest.mark.parametrize("w", WEIGHTS)
def test_least_squares_on_stacked_rows(w):
  rows = [np.sqrt(E) * SOURCE, np.sqrt(P) * HELD, np.sqrt(LAMB) * np.eye(D)]
  wanted = [np.sqrt(E) * TARGET, np.sqrt(P) * HELD, np.sqrt(LAMB) * np.eye(D)]
  expected = np.linalg.lstsq(
    np.concatenate(rows), np.concatenate(wanted) @ w.T, rcond=None
  )[0].T
  assert relative(w @ context_map(), expected) < 1e-12


def test_textbook_at_the_width_of_stable_diffusion():
  source, target, held = (10 * states(76, i, 768) for i in range(3))
  w = np.random.default_rng(9).normal(size=(8, 768))
  system = 0.5 * np.eye(768) + source.T @ source + held.T @ held
  left = 0.5 * w + w @ target.T @ source + w @ held.T @ held
  expected = np.linalg.solve(system, left.T).T
  got, found = cf.solve(
    cf.erase_sums(source, target, 1.0) + cf.preserve_sums(held, 1.0), 0.5
  )
  change = relative(w @ got - w, expected - w)
  assert change < 1e-8
  true = np.linalg.cond(system, 1)
  assert true / 3 < found["condition_number"] < true * 1.001
  assert found["solve_error"] < 1e-12


def test_one_row_has_a_formula():
  c, a = SOURCE[0], TARGET[0]
  expected = np.eye(D) + E * np.outer(a - c, c) / (LAMB + E * c @ c)
  got = cf.solve(cf.erase_sums(c[None], a[None], E), LAMB)[0]
  assert relative(got, expected) < 2e-13
  # The residual of the old meaning is lamb / (lamb + e |c|^2).
  left = cf.residual(got, [(c[None], a[None])])
  assert np.isclose(left, LAMB / (LAMB + E * c @ c), rtol=1e-10)


@pytest.mark.parametrize("w", WEIGHTS)
def test_is_the_minimum(w):
  new = w @ context_map()
  scale = np.linalg.norm(gradient(w, w))
  assert np.linalg.norm(gradient(w, new)) < 1e-12 * scale
  noise = np.random.default_rng(5).normal(size=w.shape)
  assert loss(w, new) < min(loss(w, w), loss(w, new + 1e-3 * noise))


def test_limits():
  eye = np.eye(D)
  assert np.array_equal(context_map(target=SOURCE), eye)
  assert np.abs(context_map(e=1e-14) - eye).max() < 1e-10
  assert np.abs(context_map(lamb=1e14) - eye).max() < 1e-9
  strong = context_map(e=1e6, p=0.0, lamb=1e-1)
  assert relative(SOURCE @ strong.T, TARGET) < 1e-6
  firm = context_map(p=1e6)
  assert relative(HELD @ firm.T, HELD) < 1e-5


def test_changes_nothing_outside_the_rows():
  rows = np.concatenate([SOURCE, HELD])
  away = np.linalg.svd(rows)[2][-1]
  got = context_map()
  assert np.abs(got @ away - away).max() < 1e-12
  rank = np.linalg.matrix_rank(got - np.eye(D), tol=1e-10)
  assert rank <= len(SOURCE)


def test_sums_add_up_in_any_order():
  base = context_map()
  turned = np.array([3, 1, 4, 0, 2])
  split = (
    cf.preserve_sums(HELD, P)
    + cf.erase_sums(SOURCE[3:], TARGET[3:], E)
    + cf.erase_sums(SOURCE[:3], TARGET[:3], E)
  )
  twice = np.concatenate([SOURCE, SOURCE]), np.concatenate([TARGET, TARGET])
  padded = [np.concatenate([x, np.zeros((3, D))]) for x in (SOURCE, TARGET)]
  for other in (
    context_map(source=SOURCE[turned], target=TARGET[turned]),
    cf.solve(split, LAMB)[0],
    context_map(e=E / 2, source=twice[0], target=twice[1]),
    context_map(source=padded[0], target=padded[1]),
    cf.solve(3.0 * problem(), 3 * LAMB)[0],
  ):
    assert relative(other, base) < 1e-12
  assert (split.erased, split.preserved) == (5, 4)
  # A concept that is added and taken away again leaves no trace.
  more = problem() + cf.erase_sums(states(2, 8), states(2, 9), E)
  less = more + (-1.0) * cf.erase_sums(states(2, 8), states(2, 9), E)
  assert relative(cf.solve(less, LAMB)[0], base) < 1e-12


def test_stacking_is_not_the_joint_edit():
  def one(rows):
    sums = cf.erase_sums(SOURCE[rows], TARGET[rows], E)
    return cf.solve(sums, LAMB)[0]

  joint = one(slice(0, 4))
  stacked = one(slice(0, 2)) @ one(slice(2, 4))
  assert relative(stacked, joint) > 1e-2


def test_follows_a_change_of_basis():
  turn = np.linalg.qr(np.random.default_rng(4).normal(size=(D, D)))[0]
  turned = context_map(
    source=SOURCE @ turn.T, target=TARGET @ turn.T, held=HELD @ turn.T
  )
  assert relative(turned, turn @ context_map() @ turn.T) < 1e-12


def test_refuses_systems_that_are_not_positive_definite():
  with pytest.raises(ValueError, match="lamb=0.*rank 9 of 12.*smallest"):
    cf.solve(problem(), 0.0)
  # Subtracted once too often.
  with pytest.raises(ValueError, match="not safely positive definite"):
    cf.solve((-1.0) * problem(), LAMB)
  with pytest.raises(ValueError, match="condition number"):
    cf.solve(problem(), 1e-10)


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_refuses_scales(bad):
  with pytest.raises(ValueError, match="erase_scale="):
    problem(e=bad)
  with pytest.raises(ValueError, match="preserve_scale="):
    problem(p=bad)
  with pytest.raises(ValueError, match="lamb="):
    cf.solve(problem(), bad)


def test_refuses_states_that_are_not_finite():
  bad = SOURCE.copy()
  bad[2, 1] = np.nan
  with pytest.raises(ValueError, match="source.*row=2"):
    problem(source=bad)
  with pytest.raises(ValueError, match="target.*row=2"):
    problem(target=bad)
  with pytest.raises(ValueError, match="4 target|source rows"):
    problem(target=TARGET[:4])
