"""Noise schedules, read from a diffusers `scheduler_config.json`.

The forward process is x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) n, where a_t is the
cumulative product of 1 - beta. `timesteps` chooses the steps that a sampler
visits, and `samplers` moves between them.

A key that diffusers reads for the chosen sampler, and that is not supported
here, is refused. So a schedule never differs from what its file says.
"""

import dataclasses
import functools
import itertools
import math
import warnings
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from unlearning_jax import scheduler_keys as keys
from unlearning_jax.concepts import check_choice
from unlearning_jax.scheduler_keys import SAMPLERS as SAMPLERS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
  """A checkpoint's noise schedule and the sampler it names; hashable.

  Build it with `from_config`. A field that `sampler` does not read has the
  neutral default below, whatever the file says. `config` keeps the file's own
  values, which `with_sampler` reads as another class.
  """

  sampler: str
  config: tuple[tuple[str, Any], ...]
  num_train_timesteps: int
  beta_start: float
  beta_end: float
  beta_schedule: str
  trained_betas: tuple[float, ...] | None
  prediction_type: str
  steps_offset: int
  timestep_spacing: str
  set_alpha_to_one: bool = False
  skip_prk_steps: bool = False
  clip_sample: bool = False
  clip_sample_range: float = 1.0
  use_karras_sigmas: bool = False
  interpolation_type: str = "linear"
  final_sigmas_type: str = "zero"
  solver_order: int = 2
  solver_type: str = "midpoint"
  lower_order_final: bool = True
  euler_at_final: bool = False
  lambda_min_clipped: float = -math.inf

  @classmethod
  def from_config(cls, config: Mapping[str, Any]) -> Self:
    """Reads the contents of a `scheduler_config.json`.

    Its `_class_name` decides the sampler. An absent key takes the default of
    that diffusers class.

    Raises:
      ValueError: a class or key is unknown, or a value not supported.
    """
    sampler = keys.sampler_of_class(config.get("_class_name"))
    return cls._read(config, sampler, {**keys.COMMON, **keys.OWN[sampler]})

  @classmethod
  def of_folder(cls, config: Mapping[str, Any]) -> Self:
    """As `from_config`, also of a folder whose sampler nothing here draws with.

    The noise levels are read. `sampler` is then the class, with the setting
    that is not supported, and `samplers.make_sampler` asks for another.

    Raises:
      ValueError: the class is unknown, or its noise levels are not supported.
    """
    name = str(config.get("_class_name")).removeprefix("Flax")
    if name in keys.UNDRAWN:
      levels = {
        "timestep_spacing": "leading",
        **dict.fromkeys(keys.LEVELS, False),
      }
      defaults = {**keys.COMMON, **levels, **keys.UNDRAWN[name]}
      known = {k for k in config if k.startswith("_") or k in keys.KNOWN}
      config = {key: config[key] for key in known}
      return cls._read(config, name, defaults)
    sampler = keys.sampler_of_class(name)
    for key, default in keys.OWN[sampler].items():
      try:
        keys.check(key, config.get(key, default))
      except ValueError:
        if key in keys.LEVELS or key not in config:
          raise
        undrawn = f"{name} with {key}={config[key]!r}"
        own = {"timestep_spacing": keys.OWN[sampler]["timestep_spacing"]}
        return cls._read(config, undrawn, {**keys.COMMON, **own})
    return cls.from_config(config)

  @classmethod
  def _read(
    cls,
    config: Mapping[str, Any],
    sampler: str,
    defaults: Mapping[str, Any],
  ) -> Self:
    """Reads the keys of `defaults`; see `from_config`."""
    # diffusers lists the keys here that nobody set: the class decides them.
    unset = config.get("_use_default_values", ())
    said = {
      key: tuple(value) if isinstance(value, list) else value
      for key, value in config.items()
      if not key.startswith("_") and key not in unset
    }
    known = sorted(keys.KNOWN)
    for key in said:
      if key not in known:
        raise ValueError(
          f"scheduler config key {key!r} is unknown{keys.nearest(key, known)}"
        )
    values = {k: said.get(k, default) for k, default in defaults.items()}
    for key, value in values.items():
      keys.check(key, value)
    steps = values["num_train_timesteps"]
    keys.check_trained_betas(values["trained_betas"], steps)
    fields = {field.name for field in dataclasses.fields(cls)}
    return cls(
      sampler=sampler,
      config=tuple(sorted(said.items())),
      **{key: value for key, value in values.items() if key in fields},
    )

  def to_config(self) -> dict[str, Any]:
    """The file's values, as a dict that diffusers reads."""
    said = {k: list(v) if isinstance(v, tuple) else v for k, v in self.config}
    kind = SAMPLERS.get(self.sampler, self.sampler)
    return {"_class_name": kind, **said}

  def with_sampler(self, name: str) -> Self:
    """The same file read for another sampler, as diffusers' `from_config` does.

    Raises:
      ValueError: the name is not in `SAMPLERS`, or the file sets what is not
        supported for that sampler.
    """
    check_choice("sampler", name, SAMPLERS)
    return self.from_config({**self.to_config(), "_class_name": SAMPLERS[name]})

  @functools.cached_property
  def alphas_cumprod(self) -> np.ndarray:
    """a_t for t = 0..T-1: (T,) float32, read-only, bit for bit that of torch.

    torch multiplies in float64 and rounds each product to float32.
    """
    alphas = np.float32(1) - _betas(self)
    product = np.cumprod(alphas.astype(np.float64)).astype(np.float32)
    product.setflags(write=False)
    return product


def add_noise(
  schedule: Schedule,
  latents: Float[Array, "b h w c"],
  noise: Float[Array, "b h w c"],
  t: Int[Array, " b"],
) -> Float[Array, "b h w c"]:
  """Noisy latents sqrt(a_t) x + sqrt(1 - a_t) n, in the dtype of `latents`.

  A step outside 0..T-1 gives NaN.
  """
  signal, sigma = _levels(schedule, t)
  x, n = latents.astype(jnp.float32), noise.astype(jnp.float32)
  return (signal * x + sigma * n).astype(latents.dtype)


def velocity(
  schedule: Schedule,
  latents: Float[Array, "b h w c"],
  noise: Float[Array, "b h w c"],
  t: Int[Array, " b"],
) -> Float[Array, "b h w c"]:
  """The target of a v-prediction model: sqrt(a_t) n - sqrt(1 - a_t) x.

  A step outside 0..T-1 gives NaN.
  """
  signal, sigma = _levels(schedule, t)
  x, n = latents.astype(jnp.float32), noise.astype(jnp.float32)
  return (signal * n - sigma * x).astype(latents.dtype)


def warn_of_sampler(
  schedule: Schedule, sampler: str | None, said: Mapping[str, Any]
):
  """Warns where published images of a sampler were made by another setting.

  Args:
    schedule: the checkpoint's.
    sampler: what is drawn with; None for the checkpoint's own.
    said: the scheduler's file.
  """
  if sampler == "ddim" != schedule.sampler and "clip_sample" not in said:
    warnings.warn(
      "sampler='ddim' draws with clip_sample=False; diffusers' DDIMScheduler."
      "from_config of this folder has clip_sample=True, because the folder's "
      f"scheduler, {said.get('_class_name')}, does not set it",
      stacklevel=3,
    )
  if sampler == "lms":
    spacing = schedule.with_sampler("lms").timestep_spacing
    if spacing != "linspace":
      warnings.warn(
        f"sampler='lms' draws with timestep_spacing={spacing!r}, as the "
        "folder's scheduler sets it; published runs of LMS have "
        "timestep_spacing='linspace'",
        stacklevel=3,
      )


def _levels(
  schedule: Schedule, t: Int[Array, " b"]
) -> tuple[jax.Array, jax.Array]:
  """sqrt(a_t) and sqrt(1 - a_t), each (b, 1, 1, 1) float32."""
  t = jnp.asarray(t)
  if not jnp.issubdtype(t.dtype, jnp.integer):
    raise ValueError(f"t has dtype {t.dtype}; allowed: whole training steps")
  a = schedule.alphas_cumprod
  # As an unsigned index, a negative step is too large and gives NaN as well.
  index = t.astype(jnp.uint32)
  signal, sigma = (
    jnp.take(jnp.asarray(table), index, mode="fill").reshape(-1, 1, 1, 1)
    for table in (np.sqrt(a), np.sqrt(np.float32(1) - a))
  )
  return signal, sigma


def _betas(schedule: Schedule) -> np.ndarray:
  """The variances beta_t: (T,) float32, bit for bit those of torch."""
  steps = schedule.num_train_timesteps
  start, end = schedule.beta_start, schedule.beta_end
  if schedule.trained_betas is not None:
    return np.array(schedule.trained_betas, np.float32)
  if schedule.beta_schedule == "linear":
    return _linspace(start, end, steps)
  if schedule.beta_schedule == "scaled_linear":
    return np.square(_linspace(start**0.5, end**0.5, steps))
  level = [
    math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2
    for i in range(steps + 1)
  ]
  betas = [min(1 - b / a, 0.999) for a, b in itertools.pairwise(level)]
  return np.array(betas, np.float32)


def _linspace(start: float, end: float, steps: int) -> np.ndarray:
  """`torch.linspace` in float32, which counts from both ends with fused adds.

  `numpy.linspace` differs in the last bit of about one value in four.
  """
  first, last = np.float32(start), np.float32(end)
  step = np.float32((last - first) / np.float32(steps - 1))
  index = np.arange(steps)
  rising = np.float64(first) + np.float64(step) * index
  falling = np.float64(last) - np.float64(step) * (steps - 1 - index)
  return np.where(index < steps // 2, rising, falling).astype(np.float32)
