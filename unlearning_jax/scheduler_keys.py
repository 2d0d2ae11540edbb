"""The keys of a diffusers `scheduler_config.json`: which class reads which.

`schedules` reads a file by these tables.
"""

import difflib
import math
from collections.abc import Iterable
from typing import Any

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
COMMON = {
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
OWN: dict[str, dict[str, Any]] = {
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
WITHOUT_EFFECT = frozenset(
  "disable_corrector dynamic_thresholding_ratio flow_shift"
  " original_inference_steps predict_x0 rho sample_max_value shift_terminal"
  " sigma_data sigma_schedule solver_p time_shift_type timestep_scaling"
  " use_dynamic_shifting".split()
)

# Classes that nothing here draws with, but whose noise levels are those of
# their betas; with the defaults in which they differ from `COMMON`.
UNDRAWN: dict[str, dict[str, Any]] = {
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
LEVELS = {"rescale_betas_zero_snr"}

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
# Every key that some class reads.
KNOWN = frozenset({*COMMON, *WITHOUT_EFFECT}.union(*OWN.values()))


def sampler_of_class(name: object) -> str:
  """`PNDMScheduler` -> `pndm`."""
  by_class = {class_name: sampler for sampler, class_name in SAMPLERS.items()}
  # Old Flax classes of diffusers wrote FlaxPNDMScheduler.
  plain = str(name).removeprefix("Flax")
  if plain not in by_class:
    raise ValueError(
      f"scheduler _class_name={name!r} is not supported;"
      f" allowed: {', '.join(by_class)}{nearest(plain, by_class)}"
    )
  return by_class[plain]


def nearest(name: object, names: Iterable[str]) -> str:
  """The end of a message, with the name most like one that is unknown."""
  close = difflib.get_close_matches(str(name), list(names), n=1)
  return f"; did you mean {close[0]!r}?" if close else ""


def check(key: str, value: Any) -> None:
  """Raises ValueError unless the value of one config key is supported."""
  if key in _ALLOWED:
    allowed = _ALLOWED[key]
    # Compared with the type: 1 is not True, 2.0 is not 2.
    if any(type(value) is type(a) and value == a for a in allowed):
      return
    wanted = ", ".join(map(repr, allowed))
    near = nearest(value, [a for a in allowed if isinstance(a, str)])
    raise ValueError(
      f"scheduler config {key}={value!r} is not supported;"
      f" allowed: {wanted}{near}"
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


def check_trained_betas(betas: Any, steps: int) -> None:
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
