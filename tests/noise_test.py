import hashlib
import time

import jax
import numpy as np
import pytest

from unlearning_jax.noise import row_noise

# First three, last two and the sum of `torch.manual_seed(seed)` and then
# `torch.randn(1, 4, 64, 64)` on a CPU, torch 2.13, flat.
GOLDEN = {
  0: (-1.125840, -1.152360, -0.250579, -1.366470, -1.078208, -124.1127),
  42: (1.926915, 1.487284, 0.900717, 0.972810, -0.293406, 149.7648),
  2**31: (-1.846597, 1.118582, -0.110446, 1.227846, 0.903803, 100.4012),
  4288447746: (-1.028947, 1.164129, 0.226528, -0.724919, -1.700853, 169.3863),
}
# `torch.randn(17)` twice from one generator of seed 42: numbers 0, 1, 15, 16.
TAILS = (
  (1.926915, -0.159597, 0.859859, -0.309727),
  (-0.871236, 0.078024, -1.202446, 0.707812),
)
# Seeds that meet every corner: both halves of 64 bits, their edges.
SEEDS = (0, 42, 2**31, 2**32 - 1, 2**32 + 5, 4288447746, 2**63, 2**64 - 1)


@pytest.mark.parametrize("seed", GOLDEN)
def test_torch_goldens(seed):
  rows = row_noise([seed], (64, 64, 4), "torch")
  assert rows.shape == (1, 64, 64, 4)
  assert rows.dtype == np.float32
  flat = rows.transpose(0, 3, 1, 2).ravel()
  np.testing.assert_allclose(
    flat[[0, 1, 2, -2, -1]], GOLDEN[seed][:5], atol=1e-6
  )
  assert flat.sum(dtype=np.float64) == pytest.approx(GOLDEN[seed][5], abs=1e-3)


def test_torch_golden_with_a_tail():
  flat = row_noise([42], (1, 17, 1), "torch").ravel()
  np.testing.assert_allclose(
    flat[[0, 1, 15, 16]],
    [1.926915, -0.159597, 0.859859, -0.309727],
    atol=1e-6,
  )


@pytest.mark.torch
@pytest.mark.parametrize(
  "shape",
  [(64, 64, 4), (96, 64, 4), (8, 8, 8), (5, 5, 4), (3, 7, 3), (1, 16, 1)],
)
def test_torch_itself(shape):
  torch = pytest.importorskip("torch")
  height, width, channels = shape
  rows = row_noise(SEEDS, shape, "torch")
  for seed, row in zip(SEEDS, rows, strict=True):
    torch.manual_seed(seed)
    theirs = torch.randn(1, channels, height, width).numpy()[0]
    np.testing.assert_allclose(
      row, theirs.transpose(1, 2, 0), rtol=0, atol=5e-7
    )


@pytest.mark.torch
@pytest.mark.parametrize("shape", [(8, 8, 8), (5, 5, 4), (65, 65, 4)])
def test_several_images_of_one_generator(shape):
  torch = pytest.importorskip("torch")
  height, width, channels = shape
  rows = row_noise([42] * 3, shape, "torch", [2, 0, 1])
  generator = torch.Generator().manual_seed(42)
  size = (1, channels, height, width)
  drawn = [torch.randn(size, generator=generator).numpy() for _ in range(3)]
  for row, before in zip(rows, (2, 0, 1), strict=True):
    theirs = drawn[before][0].transpose(1, 2, 0)
    np.testing.assert_allclose(row, theirs, rtol=0, atol=5e-7)


def test_several_golden_images_with_a_tail():
  rows = row_noise([42] * 2, (1, 17, 1), "torch", [0, 1])
  flat = rows.reshape(2, 17)
  np.testing.assert_allclose(flat[:, [0, 1, 15, 16]], TAILS, atol=1e-6)


def test_torch_keeps_the_low_32_bits_only():
  rows = row_noise([7, 2**32 + 7], (4, 4, 4), "torch")
  np.testing.assert_array_equal(rows[0], rows[1])


def test_jax_keys_carry_all_64_bits():
  seeds = [5, 2**31 + 5, 2**32 + 5, 2**33 + 5, 2**63 + 5]
  rows = row_noise(seeds, (4, 4, 4))
  assert len({row.tobytes() for row in rows}) == len(seeds)


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
def test_below_32_bits_a_row_is_drawn_from_jaxs_own_key(seed):
  row = row_noise([seed], (4, 6, 2))[0]
  expected = jax.random.normal(jax.random.key(seed), (4, 6, 2))
  np.testing.assert_allclose(row, expected, atol=1e-6)


def test_the_last_axis_changes_no_bit():
  """On jax 0.12 a program that draws and reshapes gives other last bits."""
  drawn = jax.jit(jax.random.normal, static_argnums=1)(
    jax.random.key(7), (4096,)
  )
  row = row_noise([7], (32, 32, 4))
  np.testing.assert_array_equal(row.reshape(-1), drawn)


def test_a_row_is_what_it_was_under_every_jax():
  """Drawn by jax 0.10.2, 0.11.2 and 0.12.0.1 on x86, all alike."""
  digest = hashlib.sha256(row_noise([7, 8], (64, 64, 4)).tobytes()).hexdigest()
  assert digest[:16] == "1dec5a213914e7da"


def test_above_32_bits_the_key_has_both_halves():
  row = row_noise([2**40 + 3], (4, 6, 2))[0]
  key = jax.random.wrap_key_data(np.array([2**8, 3], np.uint32))
  expected = jax.random.normal(key, (4, 6, 2))
  np.testing.assert_allclose(row, expected, atol=1e-6)


@pytest.mark.parametrize("source", ["jax", "torch"])
def test_a_row_does_not_depend_on_its_batch(source):
  rows = row_noise(SEEDS, (4, 4, 4), source)
  for seed, row in zip(SEEDS, rows, strict=True):
    np.testing.assert_array_equal(row_noise([seed], (4, 4, 4), source)[0], row)
  back = row_noise(SEEDS[::-1], (4, 4, 4), source)
  np.testing.assert_array_equal(back[::-1], rows)


@pytest.mark.parametrize("source", ["jax", "torch"])
def test_noise_is_unit_normal(source):
  rows = row_noise(range(500), (8, 8, 4), source)
  assert rows.dtype == np.float32
  assert abs(rows.mean()) < 0.01
  assert abs(rows.std() - 1) < 0.01
  assert abs((rows**4).mean() - 3) < 0.1
  assert abs(np.corrcoef(rows[:, 0, 0, 0], rows[:, 0, 0, 1])[0, 1]) < 0.2


@pytest.mark.parametrize("source", ["jax", "torch"])
def test_no_seeds_no_rows_and_numpy_seeds_are_seeds(source):
  assert row_noise([], (4, 4, 4), source).shape == (0, 4, 4, 4)
  np.testing.assert_array_equal(
    row_noise(np.array([1, 2], np.uint64), (4, 4, 4), source),
    row_noise([1, 2], (4, 4, 4), source),
  )


@pytest.mark.parametrize(
  "seed", [-1, 2**64, 7.0, "7", "7.0", None, True, float("nan")]
)
@pytest.mark.parametrize("source", ["jax", "torch"])
def test_what_is_not_a_seed_is_refused(seed, source):
  with pytest.raises(ValueError, match="integers from 0 to 2"):
    row_noise([0, seed], (4, 4, 4), source)


def test_other_bad_input():
  with pytest.raises(ValueError, match="'cuda'.*jax.*torch"):
    row_noise([0], (4, 4, 4), "cuda")
  with pytest.raises(ValueError, match="15 numbers.*16"):
    row_noise([0], (3, 5, 1), "torch")
  with pytest.raises(ValueError, match="empty"):
    row_noise([0], (0, 4, 4))


@pytest.mark.parametrize("source", ["jax", "torch"])
def test_a_thousand_rows_take_less_than_a_second(source):
  row_noise(range(1000), (8, 8, 8), source)  # compiles
  start = time.perf_counter()
  row_noise(range(1000, 2000), (8, 8, 8), source)
  assert time.perf_counter() - start < 1
