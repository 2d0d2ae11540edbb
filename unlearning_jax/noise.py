"""A row's starting noise, from its seed and nothing else.

Two sources. "jax": normal noise from a key made of the whole 64-bit seed.
"torch": what `torch.manual_seed(seed); torch.randn(1, c, h, w)` gives on a CPU,
without torch, so that rows can be compared with published images one by one.
"""

import functools
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Float, Key

SOURCES = ("jax", "torch")


def row_noise(
  seeds: Sequence[int] | np.ndarray,
  shape_hwc: tuple[int, int, int],
  source: str = "jax",
) -> Float[np.ndarray, "b h w c"]:
  """Unit normal noise, one row per seed, float32.

  A row depends on its seed and the shape, never on the rest of the batch.

  Args:
    seeds: integers from 0 to 2**64 - 1.
    shape_hwc: height, width, channels of a row.
    source: "jax" or "torch". "torch" draws channels first, then transposes;
      within 5e-7 of torch. torch itself keeps only the low 32 bits of a seed.

  Raises:
    ValueError: a seed that is not such an integer ("7.0" and 7.0 are not), an
      unknown source, an empty shape, or fewer than 16 numbers a row for
      "torch", where torch takes another path.
  """
  if source not in SOURCES:
    raise ValueError(f"source={source!r} is unknown; allowed: {SOURCES}")
  seeds = [_checked(seed) for seed in seeds]
  height, width, channels = shape_hwc
  if min(shape_hwc) < 1:
    raise ValueError(f"shape_hwc={shape_hwc} is empty; allowed: sizes >= 1")
  if source == "jax":
    return np.array(_normal(_key_data(seeds), tuple(shape_hwc)))
  flat = _torch_normal(seeds, height * width * channels)
  rows = flat.reshape(len(seeds), channels, height, width)
  return np.ascontiguousarray(rows.transpose(0, 2, 3, 1))


def row_key(seed: int) -> Key[Array, ""]:
  """A JAX key that carries all 64 bits of a seed.

  `jax.random.key` drops the upper 32 bits unless x64 is on; below 2**32 the two
  agree.

  Raises:
    ValueError: not an integer from 0 to 2**64 - 1.
  """
  data = _key_data([_checked(seed)])[0]
  return jax.random.wrap_key_data(data, impl="threefry2x32")


def _checked(seed: int) -> int:
  whole = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
  if not whole or not 0 <= int(seed) < 2**64:
    raise ValueError(
      f"seed={seed!r} is not supported; allowed: integers from 0 to 2**64 - 1"
    )
  return int(seed)


def _key_data(seeds: Sequence[int]) -> np.ndarray:
  """Upper and lower half of each seed: (b, 2) uint32."""
  halves = [(seed >> 32, seed & 0xFFFFFFFF) for seed in seeds]
  return np.array(halves, np.uint32).reshape(-1, 2)


@functools.partial(jax.jit, static_argnames="shape")
def _normal(key_data: Array, shape: tuple[int, ...]) -> Array:
  # The generator is named, so that no global setting changes a row.
  keys = jax.random.wrap_key_data(key_data, impl="threefry2x32")
  return jax.vmap(lambda key: jax.random.normal(key, shape, "float32"))(keys)


def _torch_normal(seeds: Sequence[int], count: int) -> np.ndarray:
  """`torch.randn(count)` on a CPU after each manual seed: (b, count) float32.

  Uniforms u are the low 24 bits of MT19937's outputs. In every 16 of them, each
  of the first 8 meets one of the last 8 in a Box-Muller transform,
    r = sqrt(-2 log(1 - u_j)),  r cos(2 pi u_{j+8}),  r sin(2 pi u_{j+8}),
  and the two results take their places. When 16 does not divide count, the last
  16 numbers are made anew from 16 more draws.
  """
  if count < 16:
    raise ValueError(
      f'{count} numbers a row are not supported by source="torch"; allowed: 16'
      " or more"
    )
  draws = count if count % 16 == 0 else count + 16
  bits = np.empty((len(seeds), draws), np.uint32)
  for row, seed in zip(bits, seeds, strict=True):
    # RandomState, not default_rng: its seeding is the one torch uses.
    state = np.random.RandomState(seed % 2**32)
    row[:] = state.randint(0, 2**32, size=draws, dtype=np.uint32)
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
  # torch rounds log, angle, cosine and sine to float32, so they are rounded
  # here; made in float64, they do not depend on numpy's build.
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
