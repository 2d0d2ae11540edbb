"""Samplers: DDIM, PNDM, LMS, Euler and DPM-Solver++ 2M as one `lax.scan` body.

Without clipping each of the five is a linear multistep rule,

  x_{i+1} = sum_l B[i, l] x_{i-l} + C[i, l] m_{i-l},

with x the latents, m the model's outputs and l = 0 the newest. So a sampler is
two tables of weights, made once on the host in float64, and all samplers share
one step. If x_0 is clipped (DDIM's `clip_sample`), its term is not linear and
stays apart, as `Clip`.

  sampler = make_sampler(schedule, 50)
  times = jnp.asarray(sampler.timesteps)

  def body(state, i):
    x = sampler.scale(sampler.latents(state), i)
    return sampler.step(state, i, model(x, times[i])), None

  start = sampler.init(noise * sampler.init_noise_sigma)
  state, _ = jax.lax.scan(body, start, jnp.arange(len(sampler.timesteps)))
"""

import dataclasses
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from unlearning_jax.schedules import SAMPLERS, Schedule
from unlearning_jax.timesteps import (
  dpm_plan,
  in_range,
  sigma_plan,
  training_steps,
)

# Adams-Bashforth weights, newest first, by the number of known slopes.
_ADAMS_BASHFORTH = {
  1: (1.0,),
  2: (3 / 2, -1 / 2),
  3: (23 / 12, -16 / 12, 5 / 12),
  4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
_RUNGE_KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)


class State(NamedTuple):
  """What a sampler carries from one model call to the next, newest first."""

  latents: Float[Array, "d b h w c"]
  outputs: Float[Array, "d-1 b h w c"]


class Clip(NamedTuple):
  """The term weight * clip(on_latents x + on_output m, -limit, limit).

  The clipped sum is the predicted x_0. Each array is (n,) float32.
  """

  on_latents: np.ndarray
  on_output: np.ndarray
  weight: np.ndarray
  limit: float


@dataclasses.dataclass(frozen=True, eq=False)
class Sampler:
  """One sampler at one number of steps; holds small host arrays only.

  Every method can be traced, with a traced index `i` of the model call.

  Attributes:
    timesteps: (n,) the timestep of each model call; int32, or float32 for lms
      and euler, which visit fractions of a training step.
    init_noise_sigma: factor of unit noise before `init`.
    input_scale: (n,) float32, divisor of the model's input at each call.
    latent_weights: (n, d) float32, B above.
    output_weights: (n, d) float32, C above.
    clip: the clipped term; None if x_0 is not clipped.
  """

  timesteps: np.ndarray
  init_noise_sigma: float
  input_scale: np.ndarray
  latent_weights: np.ndarray
  output_weights: np.ndarray
  clip: Clip | None = None

  def init(self, latents: Float[Array, "b h w c"]) -> State:
    """The state before the first call; the missing past has weight zero."""
    depth = self.latent_weights.shape[1]
    x = jnp.asarray(latents, jnp.float32)
    past = jnp.zeros((depth - 1, *x.shape), x.dtype)
    return State(jnp.concatenate([x[None], past]), past)

  def latents(self, state: State) -> Float[Array, "b h w c"]:
    """The newest latents, float32."""
    return state.latents[0]

  def scale(
    self, latents: Float[Array, "b h w c"], i: int | Int[Array, ""]
  ) -> Float[Array, "b h w c"]:
    """The model's input at call i."""
    return latents / _at(self.input_scale, i)

  def step(
    self,
    state: State,
    i: int | Int[Array, ""],
    model_output: Float[Array, "b h w c"],
  ) -> State:
    """The state after call i, by the module's rule, in float32."""
    m = model_output.astype(jnp.float32)
    outputs = jnp.concatenate([m[None], state.outputs])
    x = _mix(_at(self.latent_weights, i), state.latents)
    x = x + _mix(_at(self.output_weights, i), outputs)
    if self.clip is not None:
      x0 = _at(self.clip.on_latents, i) * state.latents[0]
      x0 = x0 + _at(self.clip.on_output, i) * m
      x0 = jnp.clip(x0, -self.clip.limit, self.clip.limit)
      x = x + _at(self.clip.weight, i) * x0
    return State(jnp.concatenate([x[None], state.latents[:-1]]), outputs[:-1])


def make_sampler(
  schedule: Schedule, num_inference_steps: int, name: str | None = None
) -> Sampler:
  """A sampler that takes `num_inference_steps` steps over a schedule.

  Args:
    num_inference_steps: 1 to num_train_timesteps. PNDM calls the model once
      more if it skips the Runge-Kutta warm-up, nine times more if it does not.
    name: a name of `schedules.SAMPLERS`, to read the schedule's file as that
      class reads it; None for the file's own sampler.

  Raises:
    ValueError: the name is unknown, or the schedule's spacing cannot place so
      many steps.
  """
  if name is not None:
    schedule = schedule.with_sampler(name)
  if schedule.sampler not in SAMPLERS:
    raise ValueError(
      f"the model's own sampler, {schedule.sampler}, is not drawn with here; "
      "choose one: --config.sampling.sampler=ddim or sampler='ddim'; allowed: "
      f"{', '.join(SAMPLERS)}"
    )
  most = schedule.num_train_timesteps
  whole = isinstance(num_inference_steps, int | np.integer)
  whole = whole and not isinstance(num_inference_steps, bool)
  if not whole or not 1 <= num_inference_steps <= most:
    raise ValueError(
      f"num_inference_steps={num_inference_steps!r} is not supported; allowed: "
      f"an integer from 1 to num_train_timesteps={most}"
    )
  make = {
    "ddim": _ddim,
    "pndm": _pndm,
    "lms": _lms,
    "euler": _euler,
    "dpm++2m": _dpm_solver,
  }
  return make[schedule.sampler](schedule, operator.index(num_inference_steps))


def _at(table: np.ndarray, i: int | Int[Array, ""]) -> jax.Array:
  """Row i; NaN past the end, where plain indexing would repeat the last row."""
  return jnp.take(jnp.asarray(table), i, axis=0, mode="fill")


def _mix(
  weights: Float[Array, " d"], history: Float[Array, "d b h w c"]
) -> Float[Array, "b h w c"]:
  # A product and a sum, because accelerators round the inputs of a dot product.
  column = weights.reshape(-1, *[1] * (history.ndim - 1))
  return jnp.sum(column * history, axis=0)


def _sampler(
  schedule: Schedule,
  timesteps: np.ndarray,
  latent_weights: np.ndarray,
  output_weights: np.ndarray,
  sigmas: np.ndarray | None = None,
  clip: Clip | None = None,
) -> Sampler:
  """Rounds the tables to float32; a rule in sigma space gives its `sigmas`."""
  init_noise_sigma, input_scale = 1.0, np.ones(len(timesteps))
  if sigmas is not None:
    top = float(sigmas.max())
    leading = schedule.timestep_spacing == "leading"
    init_noise_sigma = (top**2 + 1) ** 0.5 if leading else top
    input_scale = np.sqrt(sigmas[:-1] ** 2 + 1)
  return Sampler(
    timesteps=timesteps,
    init_noise_sigma=init_noise_sigma,
    input_scale=input_scale.astype(np.float32),
    latent_weights=latent_weights.astype(np.float32),
    output_weights=output_weights.astype(np.float32),
    clip=clip,
  )


def _predictions(schedule: Schedule, a: np.ndarray):
  """Weights of (x, m) in the predicted x_0 and in the predicted noise at a_t.

  From x = sqrt(a) x_0 + sqrt(1 - a) n, and m = n for "epsilon" or
  m = sqrt(a) n - sqrt(1 - a) x_0 for "v_prediction".
  """
  signal, sigma = np.sqrt(a), np.sqrt(1 - a)
  if schedule.prediction_type == "v_prediction":
    return (signal, -sigma), (sigma, signal)
  return (1 / signal, -sigma / signal), (np.zeros_like(a), np.ones_like(a))


def _levels(schedule: Schedule, times: np.ndarray) -> np.ndarray:
  """a_t in float64; a negative time has the final level."""
  a = schedule.alphas_cumprod.astype(np.float64)
  final = 1.0 if schedule.set_alpha_to_one else a[0]
  return np.where(times < 0, final, a[times])


def ddim_levels(schedule: Schedule, steps: int) -> tuple[np.ndarray, ...]:
  """The t of each DDIM step, falling, and a before and after it, in float64."""
  times = training_steps(schedule, steps).round().astype(np.int32)
  earlier = times - schedule.num_train_timesteps // steps
  return times, _levels(schedule, times), _levels(schedule, earlier)


def _ddim(schedule: Schedule, steps: int) -> Sampler:
  """DDIM, eta = 0: x' = sqrt(a') x_0 + sqrt(1 - a') n (Song et al., eq. 12)."""
  times, a, a_next = ddim_levels(schedule, steps)
  x0, eps = _predictions(schedule, a)
  signal, sigma = np.sqrt(a_next), np.sqrt(1 - a_next)
  on_latents, on_output = sigma * eps[0], sigma * eps[1]
  clip = None
  if schedule.clip_sample:
    rows = np.array([*x0, signal], np.float32)
    clip = Clip(*rows, limit=schedule.clip_sample_range)
  else:
    on_latents = on_latents + signal * x0[0]
    on_output = on_output + signal * x0[1]
  return _sampler(
    schedule, times, on_latents[:, None], on_output[:, None], clip=clip
  )


class _Call(NamedTuple):
  """One model call of PNDM: take x_{i-lag} from time `start` to `stop`."""

  lag: int
  start: int
  stop: int
  slopes: dict[int, float]  # l -> weight of m_{i-l} in the slope


def _pndm_calls(
  times: np.ndarray, stride: int, skip_warm_up: bool
) -> list[_Call]:
  """PNDM's plan (Liu et al. 2022, algorithm 2), as diffusers runs it.

  The warm-up is three Runge-Kutta steps of four calls. Without a warm-up, the
  second call repeats the first step from its start, with the mean slope.
  """
  calls: list[_Call] = []
  kept: list[int] = []  # calls whose output is the slope at a step's start
  for i, t in enumerate(times.tolist()):
    if not skip_warm_up and i < 12:
      stage = i % 4
      if stage == 0:
        kept.append(i)
      # The weights are symmetric, so newest first equals oldest first.
      mean = dict(enumerate(_RUNGE_KUTTA))
      slopes = mean if stage == 3 else {0: 1.0}
      stop = t - (0 if i % 2 else stride // 2)
      calls.append(_Call(stage, int(times[i - stage]), stop, slopes))
    elif skip_warm_up and i == 1:
      calls.append(_Call(1, t + stride, t, {0: 0.5, 1: 0.5}))
    else:
      kept = [*kept, i][-4:]
      weights = _ADAMS_BASHFORTH[len(kept)]
      lags = [i - k for k in reversed(kept)]
      slopes = dict(zip(lags, weights, strict=True))
      calls.append(_Call(0, t, t - stride, slopes))
  return calls


def _pndm(schedule: Schedule, steps: int) -> Sampler:
  """PNDM: DDIM's transfer along an Adams-Bashforth slope (eq. 9 and 12)."""
  stride = schedule.num_train_timesteps // steps
  times = training_steps(schedule, steps).round().astype(np.int32)
  if schedule.skip_prk_steps:
    times = np.insert(times, 1, times[1:2])
  elif steps < 4:
    raise ValueError(
      f"num_inference_steps={steps} is not supported by pndm with"
      " skip_prk_steps=False, which warms up over 4; allowed: 4 or more"
    )
  else:
    middle = times[1:4] + stride // 2
    warm_up = np.stack([times[:3], middle, middle, times[1:4]], axis=1)
    times = np.concatenate([warm_up.ravel(), times[3:]])
  calls = _pndm_calls(times, stride, schedule.skip_prk_steps)
  depth = 1 + max(max(call.lag, *call.slopes) for call in calls)
  starts = in_range(schedule, steps, np.array([c.start for c in calls]))
  a = _levels(schedule, starts)
  a_next = _levels(schedule, np.array([c.stop for c in calls]))
  transfer = np.sqrt(a_next / a)
  slope = (a - a_next) / (
    a * np.sqrt(1 - a_next) + np.sqrt(a * (1 - a) * a_next)
  )
  _, eps = _predictions(schedule, a)
  latent_weights = np.zeros((len(calls), depth))
  output_weights = np.zeros((len(calls), depth))
  for i, call in enumerate(calls):
    latent_weights[i, call.lag] = transfer[i] + slope[i] * eps[0][i]
    for lag, weight in call.slopes.items():
      output_weights[i, lag] = slope[i] * eps[1][i] * weight
  return _sampler(schedule, times, latent_weights, output_weights)


def _lms(schedule: Schedule, steps: int, order: int = 4) -> Sampler:
  """Adams-Bashforth in sigma: dx/dsigma = n, past slopes interpolated.

  The weight of a past slope is the integral of its Lagrange polynomial from
  sigma_i to sigma_{i+1}; two Gauss points are exact up to order 4.
  """
  times, sigmas = sigma_plan(schedule, steps)
  a = 1 / (sigmas[:-1] ** 2 + 1)
  _, eps = _predictions(schedule, a)
  # The rule's latents are x / sqrt(a).
  on_latents, on_output = np.sqrt(a) * eps[0], eps[1]
  depth = min(order, len(times))
  latent_weights = np.zeros((len(times), depth))
  output_weights = np.zeros((len(times), depth))
  latent_weights[:, 0] = 1
  points, point_weights = np.polynomial.legendre.leggauss(2)
  for i in range(len(times)):
    half = (sigmas[i + 1] - sigmas[i]) / 2
    tau = sigmas[i] + half * (1 + points)
    past = range(min(i + 1, order))
    for lag in past:
      others = [sigmas[i - k] for k in past if k != lag]
      basis = np.ones(2)
      for other in others:
        basis = basis * (tau - other) / (sigmas[i - lag] - other)
      weight = half * point_weights @ basis
      latent_weights[i, lag] += weight * on_latents[i - lag]
      output_weights[i, lag] += weight * on_output[i - lag]
  return _sampler(schedule, times, latent_weights, output_weights, sigmas)


def _euler(schedule: Schedule, steps: int) -> Sampler:
  """Euler in sigma: x' = x + (sigma' - sigma) n."""
  return _lms(schedule, steps, order=1)


def _dpm_solver(schedule: Schedule, steps: int) -> Sampler:
  """DPM-Solver++ 2M, deterministic (Lu et al. 2022b, algorithm 2).

  With h the step in log(signal / noise) and e = exp(-h):
  x' = (s'/s) x + alpha' (1 - e) D_0 + w D_1, where D_0 is the newest x_0,
  D_1 = (h / h_previous) (D_0 - D_0_previous), and w = alpha' (1 - e) / 2 for
  "midpoint", alpha' (1 - (1 - e) / h) for "heun".
  """
  times, sigmas = dpm_plan(schedule, steps)
  count = len(times)
  a = 1 / (sigmas**2 + 1)
  alpha = np.sqrt(a)
  noise = sigmas * alpha
  x0, _ = _predictions(schedule, a[:-1])
  e = sigmas[1:] / sigmas[:-1]
  # A second-order last step is unstable when steps are few, and undefined at
  # the noise level zero.
  first_order_end = (
    schedule.euler_at_final
    or (schedule.lower_order_final and count < 15)
    or schedule.final_sigmas_type == "zero"
  )
  latent_weights, output_weights = np.zeros((2, count, min(2, count)))
  for i in range(count):
    data = [alpha[i + 1] * (1 - e[i])]
    first_order = schedule.solver_order == 1 or i == 0
    if not (first_order or (i == count - 1 and first_order_end)):
      h, h_previous = -np.log(e[i]), -np.log(e[i - 1])
      w = data[0] / 2
      if schedule.solver_type == "heun":
        # A last step that stays at its level has length zero.
        w = alpha[i + 1] * (1 - (1 - e[i]) / h) if h > 0 else 0.0
      w = w * h / h_previous
      data = [data[0] + w, -w]
    for lag, weight in enumerate(data):
      latent_weights[i, lag] += weight * x0[0][i - lag]
      output_weights[i, lag] += weight * x0[1][i - lag]
    latent_weights[i, 0] += noise[i + 1] / noise[i]
  return _sampler(schedule, times, latent_weights, output_weights)
