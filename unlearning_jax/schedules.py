"""Noise schedules, read from a diffusers `scheduler_config.json`.

The forward process is x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) n, where a_t is the
cumulative product of 1 - beta. `timesteps` chooses the steps that a sampler
visits, and `samplers` moves between them.

A key that diffusers reads for the chosen sampler, and that is not supported
here, is refused. So a schedule never differs from what its file says.
"""

import dataclasses
import difflib
import functools
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from unlearning_jax.concepts import check_choice

SAMPLERS = {
  "ddim": "DDIMScheduler",
  "pndm": "PNDMScheduler",
  "lms": "LMSDiscreteScheduler",
  "euler": "EulerDiscreteScheduler",
  "dpm++2m": "DPMSolverMultistepScheduler",
}

# The keys that each diffusers class reads, with the defaults of that class. One
# file means different things to different classes: without `timestep_spacing`,
# DDIM spaces "leading" and Euler "linspace".
_COMMON = {
  "num_train_timesteps": 1000,
  "beta_start": 1e-4,
  "beta_end": 0.02,
  "beta_schedule": "linear",
  "trained_betas": None,
  "prediction_type": "epsilon",
  "steps_offset": 0,
}
_SIGMAS = {
  "timestep_spacing": "linspace",
  "use_karras_sigmas": False,
  "use_exponential_sigmas": False,
  "use_beta_sigmas": False,
}
_SIGMA_ENDS = {
  "sigma_min": None,
  "sigma_max": None,
  "final_sigmas_type": "zero",
  "rescale_betas_zero_snr": False,
}
_OWN: dict[str, dict[str, Any]] = {
  "ddim": {
    "timestep_spacing": "leading",
    "set_alpha_to_one": True,
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "thresholding": False,
    "rescale_betas_zero_snr": False,
  },
  "pndm": {
    "timestep_spacing": "leading",
    "set_alpha_to_one": False,
    "skip_prk_steps": False,
  },
  "lms": _SIGMAS,
  "euler": {
    **_SIGMAS,
    **_SIGMA_ENDS,
    "interpolation_type": "linear",
    "timestep_type": "discrete",
  },
  "dpm++2m": {
    **_SIGMAS,
    **_SIGMA_ENDS,
    "solver_order": 2,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "lower_order_final": True,
    "euler_at_final": False,
    "use_lu_lambdas": False,
    "use_flow_sigmas": False,
    "lambda_min_clipped": -math.inf,
    "variance_type": None,
    "thresholding": False,
  },
}

# Keys without effect unless a refused key is set, or which only classes other
# than the five read. diffusers copies them into every file.
_WITHOUT_EFFECT = frozenset(
  "disable_corrector dynamic_thresholding_ratio flow_shift"
  " original_inference_steps predict_x0 rho sample_max_value shift_terminal"
  " sigma_data sigma_schedule solver_p time_shift_type timestep_scaling"
  " use_dynamic_shifting".split()
)

# Classes that nothing here draws with, but whose noise levels are those of
# their betas; with the defaults in which they differ from `_COMMON`.
_UNDRAWN: dict[str, dict[str, Any]] = {
  **dict.fromkeys(
    (
      "DDPMScheduler", "DDPMParallelScheduler", "DDIMParallelScheduler",
      "DEISMultistepScheduler", "DPMSolverSinglestepScheduler",
      "EulerAncestralDiscreteScheduler", "SASolverScheduler",
      "UniPCMultistepScheduler",
    ),
    {},
  ),
  **dict.fromkeys(
    (
      "DPMSolverSDEScheduler", "HeunDiscreteScheduler",
      "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler",
    ),
    {"beta_start": 0.00085, "beta_end": 0.012},
  ),
  **dict.fromkeys(
    ("LCMScheduler", "TCDScheduler"),
    {
      "beta_start": 0.00085, "beta_end": 0.012,
      "beta_schedule": "scaled_linear",
    },
  ),
}  # fmt: skip
# Keys of a class that change its noise levels, not only how it visits them.
_LEVELS = {"rescale_betas_zero_snr"}

_SWITCH = (False, True)
_OFF = (False,)
_ALLOWED: dict[str, tuple[Any, ...]] = {
  "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
  "prediction_type": ("epsilon", "v_prediction"),
  "timestep_spacing": ("leading", "linspace", "trailing"),
  "set_alpha_to_one": _SWITCH,
  "skip_prk_steps": _SWITCH,
  "clip_sample": _SWITCH,
  "use_karras_sigmas": _SWITCH,
  "lower_order_final": _SWITCH,
  "euler_at_final": _SWITCH,
  "interpolation_type": ("linear", "log_linear"),
  "final_sigmas_type": ("zero", "sigma_min"),
  "solver_order": (1, 2),
  # The last three belong to other solvers; diffusers takes them as midpoint.
  "solver_type": ("midpoint", "heun", "logrho", "bh1", "bh2"),
  "algorithm_type": ("dpmsolver++",),
  "timestep_type": ("discrete",),
  "sigma_min": (None,),
  "sigma_max": (None,),
  "thresholding": _OFF,
  "rescale_betas_zero_snr": _OFF,
  "use_exponential_sigmas": _OFF,
  "use_beta_sigmas": _OFF,
  "use_lu_lambdas": _OFF,
  "use_flow_sigmas": _OFF,
  "variance_type": (
    *(None, "fixed_small", "fixed_small_log"),
    *("fixed_large", "fixed_large_log"),
  ),
}


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
    sampler = _sampler_of_class(config.get("_class_name"))
    return cls._read(config, sampler, {**_COMMON, **_OWN[sampler]})

  @classmethod
  def of_folder(cls, config: Mapping[str, Any]) -> Self:
    """As `from_config`, also of a folder whose sampler nothing here draws with.

    The noise levels are read. `sampler` is then the class, with the setting
    that is not supported, and `samplers.make_sampler` asks for another.

    Raises:
      ValueError: the class is unknown, or its noise levels are not supported.
    """
    name = str(config.get("_class_name")).removeprefix("Flax")
    if name in _UNDRAWN:
      levels = {"timestep_spacing": "leading"} | dict.fromkeys(_LEVELS, False)
      defaults = {**_COMMON, **levels, **_UNDRAWN[name]}
      known = {*_COMMON, *_WITHOUT_EFFECT}.union(*_OWN.values())
      config = {k: v for k, v in config.items() if k[0] == "_" or k in known}
      return cls._read(config, name, defaults)
    sampler = _sampler_of_class(name)
    for key, default in _OWN[sampler].items():
      try:
        _check(key, config.get(key, default))
      except ValueError:
        if key in _LEVELS or key not in config:
          raise
        undrawn = f"{name} with {key}={config[key]!r}"
        own = {"timestep_spacing": _OWN[sampler]["timestep_spacing"]}
        return cls._read(config, undrawn, {**_COMMON, **own})
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
    known = sorted({*_COMMON, *_WITHOUT_EFFECT}.union(*_OWN.values()))
    for key in said:
      if key not in known:
        raise ValueError(
          f"scheduler config key {key!r} is unknown{_nearest(key, known)}"
        )
    values = {k: said.get(k, default) for k, default in defaults.items()}
    for key, value in values.items():
      _check(key, value)
    _check_trained_betas(values["trained_betas"], values["num_train_timesteps"])
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


def _sampler_of_class(name: object) -> str:
  """`PNDMScheduler` -> `pndm`."""
  by_class = {class_name: sampler for sampler, class_name in SAMPLERS.items()}
  # Old Flax classes of diffusers wrote FlaxPNDMScheduler.
  plain = str(name).removeprefix("Flax")
  if plain not in by_class:
    raise ValueError(
      f"scheduler _class_name={name!r} is not supported;"
      f" allowed: {', '.join(by_class)}{_nearest(plain, by_class)}"
    )
  return by_class[plain]


def _nearest(name: object, names: Iterable[str]) -> str:
  close = difflib.get_close_matches(str(name), list(names), n=1)
  return f"; did you mean {close[0]!r}?" if close else ""


def _check(key: str, value: Any) -> None:
  """Raises ValueError unless the value of one config key is supported."""
  if key in _ALLOWED:
    allowed = _ALLOWED[key]
    # Compared with the type: 1 is not True, 2.0 is not 2.
    if any(type(value) is type(a) and value == a for a in allowed):
      return
    wanted = ", ".join(map(repr, allowed))
    nearest = _nearest(value, [a for a in allowed if isinstance(a, str)])
    raise ValueError(
      f"scheduler config {key}={value!r} is not supported;"
      f" allowed: {wanted}{nearest}"
    )
  number = isinstance(value, int | float) and not isinstance(value, bool)
  whole = number and isinstance(value, int)
  rules = {
    "num_train_timesteps": (whole and value >= 2, "an integer >= 2"),
    "steps_offset": (whole and value >= 0, "an integer >= 0"),
    "beta_start": (number and 0 < value < 1, "a number between 0 and 1"),
    "beta_end": (number and 0 < value < 1, "a number between 0 and 1"),
    "clip_sample_range": (number and value > 0, "a number > 0"),
    "lambda_min_clipped": (number and value < math.inf, "a number or -inf"),
  }
  if key in rules and not rules[key][0]:
    raise ValueError(
      f"scheduler config {key}={value!r} is not supported;"
      f" allowed: {rules[key][1]}"
    )


def _check_trained_betas(betas: Any, steps: int) -> None:
  """Raises ValueError unless betas is None or one number in (0, 1) per step."""
  if betas is None:
    return
  fine = (
    isinstance(betas, tuple)
    and len(betas) == steps
    and all(isinstance(beta, float) and 0 < beta < 1 for beta in betas)
  )
  if not fine:
    size = len(betas) if isinstance(betas, tuple) else repr(betas)
    raise ValueError(
      f"scheduler config trained_betas ({size}) is not supported; allowed:"
      f" null, or num_train_timesteps={steps} numbers between 0 and 1"
    )
