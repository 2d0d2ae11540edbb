import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unlearning_jax import samplers
from unlearning_jax.schedules import Schedule, add_noise, velocity

SD14 = {
  "_class_name": "PNDMScheduler",
  "_diffusers_version": "0.6.0",
  "beta_end": 0.012,
  "beta_schedule": "scaled_linear",
  "beta_start": 0.00085,
  "num_train_timesteps": 1000,
  "set_alpha_to_one": False,
  "skip_prk_steps": True,
  "steps_offset": 1,
  "trained_betas": None,
  "clip_sample": False,
}


def test_sd14_levels_are_torchs():
  # alphas_cumprod[[0, 1, 250, 500, 750, 999]] of torch 2.13's PNDMScheduler.
  golden = np.array(
    [
      0.99915,
      0.998296,
      0.6737923,
      0.27633247,
      0.056169804,
      0.004660095,
    ],
    np.float32,
  )
  a = Schedule.from_config(SD14).alphas_cumprod
  assert a.shape == (1000,)
  assert a.dtype == np.float32
  np.testing.assert_array_equal(a[[0, 1, 250, 500, 750, 999]], golden)
  with pytest.raises(ValueError, match="read-only"):
    a[0] = 1


@pytest.mark.parametrize(
  "beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"]
)
def test_levels_fall_from_one_to_zero(beta_schedule):
  config = {**SD14, "beta_schedule": beta_schedule}
  a = Schedule.from_config(config).alphas_cumprod
  assert (np.diff(a) < 0).all()
  assert 0.99 < a[0] < 1
  assert 0 < a[-1] < 0.07


def test_trained_betas_replace_the_formula():
  betas = [0.1, 0.2, 0.5]
  config = {**SD14, "num_train_timesteps": 3, "trained_betas": betas}
  schedule = Schedule.from_config(config)
  np.testing.assert_allclose(
    schedule.alphas_cumprod, [0.9, 0.72, 0.36], rtol=1e-6
  )
  assert schedule.to_config()["trained_betas"] == betas
  assert isinstance(hash(schedule), int)


def test_a_silent_file_follows_its_class_and_a_switch_follows_the_other():
  silent = Schedule.from_config({"_class_name": "PNDMScheduler"})
  assert silent.timestep_spacing == "leading"
  assert not silent.set_alpha_to_one
  assert not silent.clip_sample
  ddim = silent.with_sampler("ddim")
  assert ddim.set_alpha_to_one
  assert ddim.clip_sample
  assert silent.with_sampler("euler").timestep_spacing == "linspace"
  assert ddim.with_sampler("pndm") == silent


def test_said_keys_survive_a_switch():
  schedule = Schedule.from_config(SD14).with_sampler("euler")
  assert schedule.steps_offset == 1
  back = schedule.with_sampler("pndm")
  assert back == Schedule.from_config(SD14)
  assert back.skip_prk_steps
  json.dumps(back.to_config())
  assert Schedule.from_config(back.to_config()) == back


def test_defaults_that_diffusers_marks_are_not_said():
  config = {
    **SD14,
    "timestep_spacing": "leading",
    "_use_default_values": ["timestep_spacing"],
  }
  euler = Schedule.from_config(config).with_sampler("euler")
  assert euler.timestep_spacing == "linspace"


def test_flax_class_names_are_read():
  config = {**SD14, "_class_name": "FlaxPNDMScheduler"}
  assert Schedule.from_config(config) == Schedule.from_config(SD14)


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"_class_name": "PNDMSheduler"}, ["PNDMSheduler", "'PNDMScheduler'"]),
    ({"_class_name": "UniPCMultistepScheduler"}, ["UniPC", "allowed"]),
    ({"_class_name": None}, ["None", "DDIMScheduler"]),
    ({"timestep_spaceing": "leading"}, ["did you mean 'timestep_spacing'"]),
    ({"timestep_spacing": "traling"}, ["traling", "mean 'trailing'"]),
    ({"prediction_type": "sample"}, ["sample", "epsilon", "v_prediction"]),
    ({"beta_schedule": "sigmoid"}, ["sigmoid", "squaredcos_cap_v2"]),
    ({"skip_prk_steps": "false"}, ["skip_prk_steps", "'false'"]),
    ({"num_train_timesteps": 0}, ["num_train_timesteps=0", ">= 2"]),
    ({"num_train_timesteps": 1000.0}, ["1000.0", "integer"]),
    ({"steps_offset": -1}, ["steps_offset=-1"]),
    ({"beta_end": 1.2}, ["beta_end=1.2", "between 0 and 1"]),
    ({"beta_start": float("nan")}, ["beta_start=nan"]),
    ({"trained_betas": [0.1, 0.2]}, ["trained_betas", "(2)", "1000"]),
    ({"trained_betas": "linear"}, ["trained_betas", "'linear'"]),
  ],
)
def test_what_cannot_be_honoured_is_refused(changes, words):
  with pytest.raises(ValueError) as error:
    Schedule.from_config({**SD14, **changes})
  for word in words:
    assert word in str(error.value)


@pytest.mark.parametrize(
  ("name", "changes"),
  [
    ("ddim", {"thresholding": True}),
    ("ddim", {"rescale_betas_zero_snr": True}),
    ("ddim", {"clip_sample": True, "clip_sample_range": 0.0}),
    ("lms", {"use_exponential_sigmas": True}),
    ("lms", {"use_beta_sigmas": True}),
    ("euler", {"timestep_type": "continuous"}),
    ("euler", {"sigma_min": 0.1}),
    ("euler", {"final_sigmas_type": "last"}),
    ("euler", {"interpolation_type": "cubic"}),
    ("dpm++2m", {"solver_order": 3}),
    ("dpm++2m", {"algorithm_type": "sde-dpmsolver++"}),
    ("dpm++2m", {"variance_type": "learned_range"}),
    ("dpm++2m", {"use_lu_lambdas": True}),
    ("dpm++2m", {"use_flow_sigmas": True}),
    ("dpm++2m", {"lambda_min_clipped": float("nan")}),
    ("dpm++2m", {"thresholding": True}),
  ],
)
def test_a_key_is_refused_by_the_samplers_that_read_it(name, changes):
  # As in diffusers, PNDM reads none of these, so its checkpoint still loads.
  schedule = Schedule.from_config({**SD14, **changes})
  key = list(changes)[-1]
  with pytest.raises(ValueError, match=key):
    schedule.with_sampler(name)


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"_class_name": "EulerAncestralDiscreteScheduler"}, "EulerAncestral"),
    ({"_class_name": "DEISMultistepScheduler", "solver_order": 3}, "DEIS"),
    ({"_class_name": "UniPCMultistepScheduler", "solver_type": "bh2"}, "UniPC"),
    ({"_class_name": "SASolverScheduler", "tau_func": None}, "SASolver"),
    ({"_class_name": "LCMScheduler"}, "LCM"),
    ({"_class_name": "DPMSolverMultistepScheduler",
      "algorithm_type": "sde-dpmsolver++"}, "algorithm_type='sde-dpmsolver"),
    ({"_class_name": "DPMSolverMultistepScheduler", "use_lu_lambdas": True},
     "use_lu_lambdas=True"),
  ],
)  # fmt: skip
def test_a_folders_sampler_that_nothing_draws_with(changes, said):
  schedule = Schedule.of_folder({**SD14, **changes})
  np.testing.assert_array_equal(
    schedule.alphas_cumprod, Schedule.from_config(SD14).alphas_cumprod
  )
  with pytest.raises(
    ValueError, match=f"own sampler, .*{said}.*sampler='ddim'"
  ):
    samplers.make_sampler(schedule, 10)
  ours = samplers.make_sampler(schedule, 10, "ddim")
  wanted = samplers.make_sampler(Schedule.from_config(SD14), 10, "ddim")
  np.testing.assert_array_equal(ours.latent_weights, wanted.latent_weights)
  np.testing.assert_array_equal(ours.timesteps, wanted.timesteps)


@pytest.mark.parametrize(
  "changes",
  [
    {"_class_name": "UniPCMultistepScheduler", "rescale_betas_zero_snr": True},
    {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True},
    {"_class_name": "EulerAncestralDiscreteScheduler", "beta_schedule": "x"},
    {"_class_name": "EDMEulerScheduler"},
    {"_class_name": "FlowMatchEulerDiscreteScheduler"},
  ],
)
def test_noise_levels_that_are_not_read(changes):
  with pytest.raises(ValueError, match="is not supported"):
    Schedule.of_folder({**SD14, **changes})


def test_unknown_sampler_names_the_nearest():
  with pytest.raises(ValueError, match="did you mean 'ddim'"):
    Schedule.from_config(SD14).with_sampler("ddmi")


def _numbers(*shape):
  return np.linspace(-2, 3, int(np.prod(shape)), dtype=np.float32).reshape(
    shape
  )


def test_forward_process_and_velocity_follow_their_equations():
  schedule = Schedule.from_config(SD14)
  x, n = _numbers(3, 2, 2, 4), _numbers(3, 2, 2, 4)[::-1]
  t = np.array([0, 500, 999], np.int32)
  a = schedule.alphas_cumprod.astype(np.float64)[t].reshape(3, 1, 1, 1)
  noisy = jax.jit(add_noise, static_argnums=0)(schedule, x, n, t)
  v = jax.jit(velocity, static_argnums=0)(schedule, x, n, t)
  np.testing.assert_allclose(noisy, a**0.5 * x + (1 - a) ** 0.5 * n, atol=1e-6)
  np.testing.assert_allclose(v, a**0.5 * n - (1 - a) ** 0.5 * x, atol=1e-6)
  # Turning (x_t, v) back by the same angle gives the latents.
  np.testing.assert_allclose(a**0.5 * noisy - (1 - a) ** 0.5 * v, x, atol=2e-6)


def test_a_step_outside_the_schedule_is_nan_not_a_neighbour():
  schedule = Schedule.from_config(SD14)
  x = jnp.ones((4, 1, 1, 1))
  noisy = add_noise(schedule, x, x, jnp.array([-1, 0, 999, 1000]))
  assert np.isnan(noisy.ravel()).tolist() == [True, False, False, True]
  with pytest.raises(ValueError, match="float32"):
    add_noise(schedule, x, x, jnp.full(4, 0.5))


def test_low_precision_latents_keep_their_type():
  schedule = Schedule.from_config(SD14)
  x = jnp.ones((1, 1, 1, 1), jnp.bfloat16)
  assert add_noise(schedule, x, x, jnp.array([5])).dtype == jnp.bfloat16
