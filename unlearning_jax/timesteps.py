"""Which training steps and noise levels a sampler visits, as host arrays.

`scheduler_config.json` says how they are spaced. Each diffusers class reads it
in its own way, which this module follows to the rounding.

A noise level is sigma = sqrt((1 - a_t) / a_t), noise relative to signal.
"""

import numpy as np

from unlearning_jax.schedules import Schedule


def training_steps(schedule: Schedule, steps: int) -> np.ndarray:
  """Training steps to visit, falling, float64; fractions in "linspace"."""
  total = schedule.num_train_timesteps
  if schedule.timestep_spacing == "linspace":
    times = np.linspace(0, total - 1, steps)[::-1]
  elif schedule.timestep_spacing == "leading":
    times = np.arange(steps)[::-1] * (total // steps)
    times = times + float(schedule.steps_offset)
  else:
    times = np.arange(total, 0, -total / steps).round() - 1
    # Rounding can make arange overshoot by one entry, the step "-1".
    times = times[times >= 0]
  return in_range(schedule, steps, times)


def in_range(schedule: Schedule, steps: int, times: np.ndarray) -> np.ndarray:
  """Returns `times`, or raises ValueError if they exceed the training steps."""
  if times.max() >= schedule.num_train_timesteps:
    raise ValueError(
      f"num_inference_steps={steps} with "
      f"steps_offset={schedule.steps_offset} starts at training step "
      f"{times.max():g}; allowed: at most {schedule.num_train_timesteps - 1}. "
      "Take fewer steps"
    )
  return times


def _training_sigmas(schedule: Schedule) -> np.ndarray:
  """sqrt((1 - a_t) / a_t), rising, (T,) float32 as diffusers has it."""
  a = schedule.alphas_cumprod
  return np.sqrt((np.float32(1) - a) / a)


def _karras(top: float, bottom: float, count: int) -> np.ndarray:
  """Noise levels evenly spaced in sigma^(1/7) (Karras et al. 2022, eq. 5)."""
  top, bottom = float(top) ** (1 / 7), float(bottom) ** (1 / 7)
  return np.linspace(top, bottom, count) ** 7


def _time_of(sigmas: np.ndarray, training: np.ndarray) -> np.ndarray:
  """The fractional training step at which log sigma has these values."""
  times = np.arange(len(training))
  return np.interp(np.log(sigmas), np.log(training), times)


def _close(schedule: Schedule, steps: int, sigmas: np.ndarray) -> np.ndarray:
  """Appends the final sigma; float32, as diffusers stores them."""
  last = 0.0
  if schedule.final_sigmas_type == "sigma_min":
    last = _training_sigmas(schedule)[0]
  sigmas = np.append(sigmas, last).astype(np.float32).astype(np.float64)
  if (np.diff(sigmas[:-1]) >= 0).any():
    raise ValueError(
      f"num_inference_steps={steps} leaves {schedule.sampler} "
      "equal noise levels with timestep_spacing="
      f"{schedule.timestep_spacing!r}; take fewer steps"
    )
  return sigmas


def sigma_plan(schedule: Schedule, steps: int) -> tuple[np.ndarray, np.ndarray]:
  """Times (n,) float32 and noise levels, at least n + 1, of LMS and Euler."""
  training = _training_sigmas(schedule)
  times = training_steps(schedule, steps).astype(np.float32)
  sigmas = np.interp(times, np.arange(len(training)), training)
  if schedule.interpolation_type == "log_linear":
    # One level more than steps, as in diffusers: sampling ends at the lowest.
    top, bottom = np.log(training[-1]), np.log(training[0])
    sigmas = np.exp(np.linspace(top, bottom, steps + 1))
  if schedule.use_karras_sigmas:
    sigmas = _karras(sigmas[0], sigmas[-1], steps)
    times = _time_of(sigmas, training).astype(np.float32)
  return times, _close(schedule, steps, sigmas)[: len(times) + 1]


def dpm_plan(schedule: Schedule, steps: int) -> tuple[np.ndarray, np.ndarray]:
  """Times (n,) int32 and noise levels (n + 1,) of DPM-Solver++."""
  training = _training_sigmas(schedule)
  total = schedule.num_train_timesteps
  a = schedule.alphas_cumprod
  # Steps noisier than lambda_min_clipped are not visited.
  log_snr = np.log(np.sqrt(a)) - np.log(np.sqrt(np.float32(1) - a))
  usable = total - int(
    np.searchsorted(log_snr[::-1], np.float32(schedule.lambda_min_clipped))
  )
  if schedule.use_karras_sigmas:
    sigmas = _karras(training[-1], training[0], steps)
    times = _time_of(sigmas, training)
    if schedule.beta_schedule != "squaredcos_cap_v2":
      times = times.round()
  else:
    if schedule.timestep_spacing == "linspace":
      times = np.linspace(0, usable - 1, steps + 1).round()[:0:-1]
    elif schedule.timestep_spacing == "leading":
      times = np.arange(steps, 0, -1.0) * (usable // (steps + 1))
      times = times + schedule.steps_offset
    else:
      times = np.arange(usable, 0, -total / steps).round() - 1
      times = times[times >= 0]
    times = in_range(schedule, steps, times)
    sigmas = np.interp(times, np.arange(total), training)
  return times.astype(np.int32), _close(schedule, steps, sigmas)
