import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unlearning_jax.samplers import make_sampler
from unlearning_jax.schedules import SAMPLERS, Schedule, add_noise, velocity

CONFIG = {
  "_class_name": "PNDMScheduler",
  "beta_start": 0.00085,
  "beta_end": 0.012,
  "beta_schedule": "scaled_linear",
  "set_alpha_to_one": True,
  "skip_prk_steps": True,
  "steps_offset": 1,
  "clip_sample": False,
}
SHAPE = (3, 2, 2, 4)


def _schedule(**changes):
  return Schedule.from_config({**CONFIG, **changes})


def _numbers(shape=SHAPE):
  rng = np.random.default_rng(3)
  return rng.normal(size=shape).astype(np.float32)


def _model(x, t):
  return jnp.tanh(x[..., ::-1] + jnp.sin(t / 300))


def _scan(sampler, noise, model=_model):
  times = jnp.asarray(sampler.timesteps).astype(jnp.float32)

  def body(state, i):
    x = sampler.scale(sampler.latents(state), i)
    return sampler.step(state, i, model(x, times[i])), None

  start = sampler.init(noise * sampler.init_noise_sigma)
  state, _ = jax.lax.scan(body, start, jnp.arange(len(times)))
  return np.asarray(sampler.latents(state))


# Runs of 7 steps by torch diffusers 0.42 on CPU from noise linspace(-1, 1, 8),
# as (1, 1, 2, 4), with the model above: first and last value.
GOLDEN = {
  "ddim": (-10.1492739, 6.54373407),
  "pndm": (-11.5680447, 7.46703863),
  "lms": (-17.9299145, 18.8837624),
  "euler": (-17.3004379, 18.5285835),
  "dpm++2m": (-19.7856617, 19.6386604),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_seven_steps_as_diffusers_takes_them(name):
  noise = np.linspace(-1, 1, 8, dtype=np.float32).reshape(1, 1, 2, 4)
  config = {**CONFIG, "set_alpha_to_one": False}
  sampler = make_sampler(Schedule.from_config(config), 7, name)
  ours = _scan(sampler, noise).ravel()
  np.testing.assert_allclose(ours[[0, -1]], GOLDEN[name], rtol=2e-6)


@pytest.mark.parametrize("skip", [True, False])
def test_pndm_calls_the_model_more_often_than_it_steps(skip):
  schedule = _schedule(skip_prk_steps=skip)
  sampler = make_sampler(schedule, 20)
  assert len(sampler.timesteps) == 20 + (1 if skip else 9)
  assert (
    sampler.timesteps[:3].tolist()
    == ([951, 901, 901], [951, 926, 926])[not skip]
  )
  assert sampler.timesteps[-1] == 1


# DDIM and PNDM step by T // n whatever the spacing, so only an even spacing
# leaves each step where the next begins.
STRAIGHT = [
  *((name, "leading") for name in SAMPLERS),
  *((name, "trailing") for name in SAMPLERS),
  *((name, "linspace") for name in ("lms", "euler", "dpm++2m")),
]


@pytest.mark.parametrize("num_inference_steps", [1, 2, 5, 20])
@pytest.mark.parametrize(("name", "spacing"), STRAIGHT)
def test_the_exact_noise_leads_back_to_the_latents(
  name, spacing, num_inference_steps
):
  """Whatever its order, a rule follows a straight path exactly."""
  schedule = _schedule(timestep_spacing=spacing)
  sampler = make_sampler(schedule, num_inference_steps, name)
  x0, noise = _numbers(), _numbers()[::-1].copy()
  if name in ("lms", "euler"):
    start = x0 + np.sqrt(sampler.input_scale[0] ** 2 - 1) * noise
  else:
    first = np.full(len(x0), sampler.timesteps[0])
    start = add_noise(schedule, x0, noise, first)
  state = sampler.init(start)
  for i in range(len(sampler.timesteps)):
    state = sampler.step(state, i, jnp.asarray(noise))
  np.testing.assert_allclose(sampler.latents(state), x0, atol=5e-5)


@pytest.mark.parametrize("name", ["ddim", "dpm++2m"])
def test_the_exact_velocity_does_so_too(name):
  schedule = _schedule(prediction_type="v_prediction")
  sampler = make_sampler(schedule, 20, name)
  x0, noise = jnp.asarray(_numbers()), jnp.asarray(_numbers()[::-1])
  times = [np.full(len(x0), t) for t in sampler.timesteps]
  state = sampler.init(add_noise(schedule, x0, noise, times[0]))
  for i, t in enumerate(times):
    state = sampler.step(state, i, velocity(schedule, x0, noise, t))
  np.testing.assert_allclose(sampler.latents(state), x0, atol=5e-5)


def test_euler_is_the_rule_of_its_docstring_and_lms_of_order_one():
  schedule = _schedule()
  sampler = make_sampler(schedule, 10, "euler")
  noise = _numbers()
  sigmas = np.append(np.sqrt(np.float64(sampler.input_scale) ** 2 - 1), 0)
  x = noise * sampler.init_noise_sigma
  for i, t in enumerate(sampler.timesteps):
    slope = np.asarray(_model(x / sampler.input_scale[i], t))
    x = x + (sigmas[i + 1] - sigmas[i]) * slope
  np.testing.assert_allclose(_scan(sampler, noise), x, atol=2e-5)
  # One step has no past: LMS has order one there.
  lms, euler = (make_sampler(schedule, 1, name) for name in ("lms", "euler"))
  np.testing.assert_allclose(
    lms.output_weights, euler.output_weights, rtol=1e-6
  )
  first = [
    make_sampler(schedule, 10, name).output_weights[0, 0]
    for name in ("lms", "euler")
  ]
  assert first[0] == pytest.approx(first[1], rel=1e-6)


def test_lms_integrates_cubics_exactly():
  """Order four: slopes that are a cubic in sigma are summed without error."""
  sampler = make_sampler(_schedule(), 12, "lms")
  sigmas = np.append(np.sqrt(np.float64(sampler.input_scale) ** 2 - 1), 0)
  weights = sampler.output_weights.astype(np.float64)
  cubic = np.polynomial.Polynomial([0.3, -0.2, 0.05, 0.01])
  for i in range(3, 12):
    step = weights[i] @ cubic(sigmas[i - np.arange(4)])
    exact = cubic.integ()(sigmas[i + 1]) - cubic.integ()(sigmas[i])
    assert step == pytest.approx(exact, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_scan_is_the_loop_and_a_row_is_its_own(name):
  sampler = make_sampler(_schedule(), 6, name)
  noise = _numbers()
  together = _scan(sampler, noise)
  state = sampler.init(jnp.asarray(noise) * sampler.init_noise_sigma)
  for i, t in enumerate(sampler.timesteps.astype(np.float32)):
    x = sampler.scale(sampler.latents(state), i)
    state = sampler.step(state, i, _model(x, t))
  np.testing.assert_allclose(sampler.latents(state), together, atol=2e-5)
  alone = _scan(sampler, noise[1:2])
  np.testing.assert_allclose(alone, together[1:2], atol=2e-6)
  others = np.concatenate([9 * noise[:1], noise[1:2], -noise[2:]])
  np.testing.assert_array_equal(_scan(sampler, others)[1], together[1])


def test_ddim_clips_the_predicted_latents_only_when_told():
  clipped = _schedule(_class_name="DDIMScheduler", clip_sample=True)
  free = _schedule(_class_name="DDIMScheduler")
  noise = 3 * _numbers()
  bounded = _scan(make_sampler(clipped, 5), noise)
  assert np.abs(bounded).max() <= 1 + 1e-6
  assert np.abs(_scan(make_sampler(free, 5), noise)).max() > 1.5


@pytest.mark.parametrize("name", SAMPLERS)
def test_half_precision_outputs_do_not_lower_the_latents(name):
  sampler = make_sampler(_schedule(), 3, name)
  state = sampler.init(jnp.asarray(_numbers()))
  state = sampler.step(state, 0, jnp.ones(SHAPE, jnp.bfloat16))
  assert sampler.latents(state).dtype == jnp.float32


def test_a_call_past_the_end_is_nan():
  sampler = make_sampler(_schedule(), 3, "ddim")
  state = sampler.init(jnp.asarray(_numbers()))
  state = sampler.step(state, 3, state.latents[0])
  assert np.isnan(sampler.latents(state)).all()


@pytest.mark.parametrize(
  "num_inference_steps", [0, -1, 1001, 2.0, True, "20", None]
)
def test_a_number_of_steps_that_cannot_be_is_refused(num_inference_steps):
  with pytest.raises(ValueError, match="num_inference_steps=.*1000"):
    make_sampler(_schedule(), num_inference_steps)


def test_steps_that_the_spacing_cannot_place_are_refused():
  with pytest.raises(ValueError, match="training step 1000.*at most 999"):
    make_sampler(_schedule(), 1000, "ddim")
  with pytest.raises(ValueError, match="equal noise levels.*fewer"):
    leading = _schedule(timestep_spacing="leading", steps_offset=0)
    make_sampler(leading, 1000, "dpm++2m")
  with pytest.raises(ValueError, match="4 or more"):
    make_sampler(_schedule(skip_prk_steps=False), 3)
  with pytest.raises(ValueError, match="did you mean 'dpm\\+\\+2m'"):
    make_sampler(_schedule(), 5, "dpm2m")


@pytest.mark.parametrize("name", SAMPLERS)
def test_trailing_steps_stay_on_the_schedule(name):
  """61 is one of the counts where plain rounding adds a step -1."""
  schedule = _schedule(timestep_spacing="trailing")
  times = make_sampler(schedule, 61, name).timesteps
  assert len(times) == 61 + (name == "pndm")
  assert times[0] == 999
  assert times.min() > 0


def test_every_number_of_steps_gives_finite_weights():
  for name in SAMPLERS:
    for num_inference_steps in (1, 2, 3, 4, 5, 10, 14, 15, 50, 333):
      sampler = make_sampler(_schedule(), num_inference_steps, name)
      assert np.isfinite(sampler.latent_weights).all()
      assert np.isfinite(sampler.output_weights).all()
      assert (np.diff(sampler.timesteps) <= 0).all()
