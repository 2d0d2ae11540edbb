"""A row's initial noise, from its seed alone.

Source "jax" draws normal noise from a key made of the whole 64-bit seed, the
same bits in jax 0.10 to 0.12. Source "torch" gives what
`torch.manual_seed(seed); torch.randn(1, c, h, w)` gives on a CPU, without
torch, so that rows can be compared with published images.
"""

import functools
import math
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Float

from unlearning_jax.concepts import check_choice

SOURCES = ("jax", "torch")


def row_noise(
  seeds: Sequence[int] | np.ndarray,
  shape_hwc: tuple[int, int, int],
  source: str = "jax",
  samples: Sequence[int] = (),
) -> Float[np.ndarray, "b h w c"]:
  """Unit normal noise, one float32 row per seed.

  A row depends on its seed and the shape, never on the rest of the batch.

  Args:
    seeds: integers from 0 to 2**64 - 1; "torch" reads their low 32 bits only,
      as torch does.
    shape_hwc: height, width, channels of a row.
    source: "torch" draws channels first, then transposes; it is within 5e-7 of
      torch.
    samples: for each row, how many rows its generator has drawn before, each
      by a call of its own; () for none. Only "torch" has such a generator. One
      call for all rows gives the same where 16 divides a row's numbers.

  Raises:
    ValueError: a seed is not such an integer ("7.0" and 7.0 are not); the
      source is unknown; the shape is empty, or has fewer than 16 numbers for
      "torch", which then draws otherwise.
  """
  check_choice("source", source, SOURCES)
  seeds = [_checked(seed) for seed in seeds]
  height, width, channels = shape_hwc
  if min(shape_hwc) < 1:
    raise ValueError(f"shape_hwc={shape_hwc} is empty; allowed: sizes >= 1")
  if any(samples) and source != "torch":
    raise ValueError(
      f"several images of one seed: noise source {source!r} has no generator "
      "that goes on; take noise_source=torch"
    )
  if source == "jax":
    return np.array(_normal(_key_data(seeds), tuple(shape_hwc)))
  before = samples or [0] * len(seeds)
  flat = _torch_normal(seeds, height * width * channels, before)
  rows = flat.reshape(len(seeds), channels, height, width)
  return np.ascontiguousarray(rows.transpose(0, 2, 3, 1))


def _checked(seed: int) -> int:
  whole = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
  if not whole or not 0 <= int(seed) < 2**64:
    raise ValueError(
      f"seed={seed!r} is not supported; allowed: integers from 0 to 2**64 - 1"
    )
  return int(seed)


def _key_data(seeds: Sequence[int]) -> np.ndarray:
  """Upper and lower half of each seed: (b, 2) uint32.

  `jax.random.key` would drop the upper half unless x64 is on. Below 2**32 both
  make the same key.
  """
  halves = [(seed >> 32, seed & 0xFFFFFFFF) for seed in seeds]
  return np.array(halves, np.uint32).reshape(-1, 2)


@functools.partial(jax.jit, static_argnames="shape")
def _normal(key_data: Array, shape: tuple[int, ...]) -> Array:
  # With the generator named, no global setting can change a row.
  keys = jax.random.wrap_key_data(key_data, impl="threefry2x32")

  def row(key: Array) -> Array:
    flat = jax.random.normal(key, (math.prod(shape),), "float32")
    # From jax 0.12 on, the last bit of 4 % of the numbers depends on the last
    # axis. Without the barrier XLA reshapes first, and it does here too.
    return jax.lax.optimization_barrier(flat).reshape(shape)

  return jax.vmap(row)(keys)


def _torch_normal(
  seeds: Sequence[int], count: int, before: Sequence[int]
) -> np.ndarray:
  """`torch.randn(count)` on a CPU after each manual seed: (b, count) float32.

  Before it, the generator drew `before` times as many, each time by a call.
  Uniforms u are the low 24 bits of MT19937 outputs. In each block of 16, every
  one of the first 8 and one of the last 8 make a Box-Muller transform,
    r = sqrt(-2 log(1 - u_j)),  r cos(2 pi u_{j+8}),  r sin(2 pi u_{j+8}),
  and the two results replace them. If 16 does not divide `count`, the last 16
  numbers are drawn again from 16 more outputs.
  """
  if count < 16:
    raise ValueError(
      f'{count} numbers a row are not supported by source="torch"; allowed: 16'
      " or more"
    )
  draws = count if count % 16 == 0 else count + 16
  bits = np.empty((len(seeds), draws), np.uint32)
  for row, seed, calls in zip(bits, seeds, before, strict=True):
    # RandomState seeds its generator as torch does; default_rng does not.
    state = np.random.RandomState(seed % 2**32)
    # A call uses up 16 outputs more where it draws its last numbers again.
    size = draws * (calls + 1)
    row[:] = state.randint(0, 2**32, size=size, dtype=np.uint32)[-draws:]
  uniforms = (bits & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)
  blocks = count - count % 16
  normals = _box_muller(uniforms[:, :blocks])
  if draws == count:
    return normals
  tail = _box_muller(uniforms[:, count:])
  return np.concatenate([normals[:, : count - 16], tail], axis=1)


def _box_muller(uniforms: np.ndarray) -> np.ndarray:
  """Blocks of 16 uniforms to normals: (b, 16 k) float32, the same shape."""
  rows, count = uniforms.shape
  pairs = uniforms.reshape(rows, count // 16, 2, 8)
  # torch rounds log, angle, cosine and sine to float32. Computed in float64 and
  # then rounded, they do not depend on numpy's build.
  log = np.log((np.float32(1) - pairs[:, :, 0]).astype(np.float64))
  radius = np.sqrt(np.float32(-2) * log.astype(np.float32))
  angle = (np.float32(2 * np.pi) * pairs[:, :, 1]).astype(np.float64)
  normals = np.stack(
    [
      radius * np.cos(angle).astype(np.float32),
      radius * np.sin(angle).astype(np.float32),
    ],
    axis=2,
  )
  return normals.reshape(uniforms.shape)
