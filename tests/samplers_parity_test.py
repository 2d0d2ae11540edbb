"""Every sampler against torch diffusers, whole trajectories, a fake model."""

import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unlearning_jax.samplers import make_sampler
from unlearning_jax.schedules import (
  SAMPLERS,
  Schedule,
  add_noise,
  velocity,
)

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
KarrasDiffusionSchedulers = pytest.importorskip(
  "diffusers.schedulers.scheduling_utils"
).KarrasDiffusionSchedulers
pytestmark = pytest.mark.torch

SHAPE = (2, 4, 4, 4)
TOLERANCE = 1e-5
SD14 = {
  "_class_name": "PNDMScheduler",
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
SD21 = {
  **SD14,
  "_class_name": "DDIMScheduler",
  "prediction_type": "v_prediction",
}
V = {"prediction_type": "v_prediction"}


def _with(name, **changes):
  return {**SD14, "_class_name": SAMPLERS[name], **changes}


# id, config, the sampler to switch to (None: the file's own), step counts
CASES = [
  ("sd14", SD14, None, (1, 2, 3, 7, 20, 50)),
  ("sd14", SD14, "ddim", (1, 2, 3, 7, 20, 50)),
  ("sd14", SD14, "lms", (1, 2, 3, 7, 20, 50)),
  ("sd14", SD14, "euler", (1, 2, 3, 7, 20, 50)),
  ("sd14", SD14, "dpm++2m", (1, 2, 3, 7, 20, 50)),
  ("sd21", SD21, None, (1, 3, 20)),
  ("sd21", SD21, "pndm", (20,)),
  ("sd21", SD21, "lms", (20,)),
  ("sd21", SD21, "euler", (20,)),
  ("sd21", SD21, "dpm++2m", (20,)),
  # The warm-up; a stride that halves unevenly (1000 // 7 = 142, // 3 ...).
  ("prk", _with("pndm", skip_prk_steps=False), None, (4, 7, 20, 37)),
  ("prk-v", _with("pndm", skip_prk_steps=False, **V), None, (11,)),
  # Silent files: every class falls back on its own defaults.
  ("bare", {"_class_name": "DDIMScheduler"}, None, (20,)),
  ("bare", {"_class_name": "PNDMScheduler"}, "ddim", (20,)),
  ("bare", {"_class_name": "DDIMScheduler"}, "pndm", (20,)),
  ("bare", {"_class_name": "EulerDiscreteScheduler"}, "dpm++2m", (20,)),
  ("clip", _with("ddim", clip_sample=True, clip_sample_range=0.7), None, (9,)),
  ("clip-v", _with("ddim", clip_sample=True, **V), None, (9,)),
  ("one", _with("ddim", set_alpha_to_one=True), None, (20,)),
  ("one", _with("pndm", set_alpha_to_one=True), None, (20,)),
  *(
    (spacing, _with(name, timestep_spacing=spacing), None, (7, 20))
    for spacing in ("leading", "linspace", "trailing")
    for name in SAMPLERS
  ),
  *(
    ("karras", _with(name, use_karras_sigmas=True, **more), None, (7, 20))
    for name in ("lms", "euler", "dpm++2m")
    for more in ({}, {"timestep_spacing": "leading", **V})
  ),
  *(
    ("cosine", _with(name, beta_schedule="squaredcos_cap_v2"), None, (20,))
    for name in ("ddim", "pndm")
  ),
  (
    "cosine",
    _with(
      "dpm++2m", beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1
    ),
    None,
    (20,),
  ),
  (
    "short",
    _with("euler", num_train_timesteps=77, beta_schedule="linear"),
    None,
    (7,),
  ),
  (
    "given",
    _with(
      "ddim",
      num_train_timesteps=50,
      trained_betas=np.linspace(0.001, 0.1, 50).tolist(),
    ),
    None,
    (10,),
  ),
  ("floor", _with("euler", final_sigmas_type="sigma_min"), None, (7,)),
  ("log", _with("euler", interpolation_type="log_linear"), None, (7, 20)),
  *(
    ("dpm", _with("dpm++2m", **more), None, (5, 20))
    for more in (
      {"solver_order": 1},
      {"solver_type": "heun"},
      {"solver_type": "bh2"},
      {"final_sigmas_type": "sigma_min"},
      {"final_sigmas_type": "sigma_min", "euler_at_final": True},
      {"final_sigmas_type": "sigma_min", "lower_order_final": False},
    )
  ),
]


@pytest.fixture(scope="module")
def numbers():
  rng = np.random.default_rng(0)
  return {
    "mix": rng.normal(size=(4, 4)).astype(np.float32),
    "noise": rng.normal(size=SHAPE).astype(np.float32),
  }


def _theirs(config, name):
  own = getattr(diffusers, config["_class_name"]).from_config(config)
  if name is None:
    return own
  return getattr(diffusers, SAMPLERS[name]).from_config(own.config)


def _their_run(scheduler, num_inference_steps, mix, noise):
  scheduler.set_timesteps(num_inference_steps)
  x = torch.from_numpy(noise) * scheduler.init_noise_sigma
  weights = torch.from_numpy(mix)
  for t in scheduler.timesteps:
    inputs = scheduler.scale_model_input(x, t)
    output = torch.tanh(inputs @ weights + torch.sin(t.float() / 300))
    x = scheduler.step(output, t, x).prev_sample
  return x.numpy()


def _our_run(sampler, mix, noise):
  times = jnp.asarray(sampler.timesteps).astype(jnp.float32)

  def body(state, i):
    inputs = sampler.scale(sampler.latents(state), i)
    output = jnp.tanh(inputs @ mix + jnp.sin(times[i] / 300))
    return sampler.step(state, i, output), None

  start = sampler.init(noise * sampler.init_noise_sigma)
  state, _ = jax.lax.scan(body, start, jnp.arange(len(times)))
  return np.asarray(sampler.latents(state))


def relative_error(config, name, num_inference_steps, mix, noise):
  """Largest difference after a whole run, relative to the largest value."""
  scheduler = _theirs(config, name)
  theirs = _their_run(scheduler, num_inference_steps, mix, noise)
  sampler = make_sampler(
    Schedule.from_config(config), num_inference_steps, name
  )
  np.testing.assert_allclose(
    sampler.timesteps, scheduler.timesteps.numpy(), rtol=1e-6, atol=1e-4
  )
  ours = _our_run(sampler, mix, noise)
  return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize(
  ("config", "name", "counts"),
  [
    pytest.param(*case[1:], id=f"{case[0]}-{case[1]['_class_name']}-{case[2]}")
    for case in CASES
  ],
)
def test_whole_runs_match_diffusers(config, name, counts, numbers):
  for count in counts:
    error = relative_error(config, name, count, **numbers)
    assert error < TOLERANCE, f"{count} steps: {error:.1e}"


def test_a_pndm_checkpoint_samples_with_every_other_sampler():
  """What diffusers' users do: `Other.from_config(pipe.scheduler.config)`."""
  schedule = Schedule.from_config(SD14)
  for name in SAMPLERS:
    scheduler = _theirs(SD14, name)
    scheduler.set_timesteps(20)
    sampler = make_sampler(schedule, 20, name=name)
    assert len(sampler.timesteps) == len(scheduler.timesteps)
    assert sampler.init_noise_sigma == pytest.approx(
      float(scheduler.init_noise_sigma), rel=1e-6
    )


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"beta_schedule": "linear"},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"num_train_timesteps": 77},
    {"beta_start": 0.0001, "beta_end": 0.02, "num_train_timesteps": 100},
  ],
)
def test_alphas_cumprod_is_torchs_bit_for_bit(changes):
  config = {**SD14, **changes}
  theirs = _theirs(config, None).alphas_cumprod.numpy()
  ours = Schedule.from_config(config).alphas_cumprod
  np.testing.assert_array_equal(ours, theirs)


def test_forward_process_matches(numbers):
  noise = numbers["noise"]
  latents = noise[::-1].copy()
  schedule, scheduler = Schedule.from_config(SD21), _theirs(SD21, None)
  for pair in ((0, 999), (1, 500), (981, 20)):
    t = np.array(pair, np.int32)
    args = [torch.from_numpy(a) for a in (latents, noise, t.astype(np.int64))]
    for ours, theirs in (
      (add_noise, scheduler.add_noise),
      (velocity, scheduler.get_velocity),
    ):
      np.testing.assert_allclose(
        jax.jit(ours, static_argnums=0)(schedule, latents, noise, t),
        theirs(*args).numpy(),
        atol=5e-7,
      )


def test_files_that_diffusers_writes_are_read():
  """All keys of the five classes, explicit, as `save_pretrained` has them."""
  for name, class_name in SAMPLERS.items():
    written = json.loads(getattr(diffusers, class_name)().to_json_string())
    assert Schedule.from_config(written).sampler == name


def test_no_key_of_a_compatible_class_is_taken_for_a_typo():
  """diffusers carries keys of other classes along; most say nothing here."""
  keys = set()
  for member in KarrasDiffusionSchedulers:
    parameters = inspect.signature(getattr(diffusers, member.name)).parameters
    keys |= set(parameters) - {"args", "kwargs"}
  assert len(keys) > 30
  for key in sorted(keys):
    try:
      Schedule.from_config({**SD14, key: "nonsense"})
    except ValueError as error:
      assert "unknown" not in str(error), key


def test_our_config_opens_in_diffusers():
  for name, class_name in SAMPLERS.items():
    config = Schedule.from_config(SD14).with_sampler(name).to_config()
    opened = getattr(diffusers, class_name).from_config(config)
    assert opened.config.beta_end == SD14["beta_end"]
    assert opened.config.steps_offset == 1
