"""Whole images against torch's StableDiffusionPipeline, from one folder."""

import json

import numpy as np
import pytest

from tests.support import tiny_pipelines
from unlearning_jax import sampling, stable_diffusion
from unlearning_jax.noise import row_noise
from unlearning_jax.schedules import SAMPLERS

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
pytestmark = [
  pytest.mark.torch,
  # The pipeline says so when it corrects a scheduler's config.
  pytest.mark.filterwarnings("ignore:(?s).*should be set to:FutureWarning"),
]

# Of the largest latent, after 20 steps; measured 2e-6 and less.
TOLERANCE = 2e-5
PROMPTS = ["a b ab", "z"]
NEGATIVE = "c d"
SEEDS = [3, 2**32 - 1]
STEPS = 20
SCALE = 7.5


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """A folder of each kind, as torch's libraries write it."""
  out = {}
  for name in tiny_pipelines.CONFIGS:
    folder = tmp_path_factory.mktemp(name)
    tiny_pipelines.write(folder, name)
    if name == "sd2":
      # As published: silent on the offset, which the pipeline then sets.
      file = folder / "scheduler" / "scheduler_config.json"
      config = json.loads(file.read_text())
      config |= {"prediction_type": "v_prediction", "steps_offset": 0}
      file.write_text(json.dumps(config))
    out[name] = folder
  return out


@pytest.fixture(scope="module")
def loaded(folders):
  return {n: stable_diffusion.load(folder) for n, folder in folders.items()}


def torch_run(folder, sampler, output_type, scale=SCALE):
  options = {}
  if sampler is not None:
    # Handed over at opening, where the pipeline corrects what it corrects in
    # every scheduler: on its own, DDIM would clip latents to [-1, 1].
    scheduler = getattr(diffusers, SAMPLERS[sampler])
    options["scheduler"] = scheduler.from_pretrained(folder / "scheduler")
  pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
    str(folder),
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
    **options,
  )
  pipeline.set_progress_bar_config(disable=True)
  return pipeline(
    PROMPTS,
    negative_prompt=[NEGATIVE] * len(PROMPTS),
    num_inference_steps=STEPS,
    guidance_scale=scale,
    generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
    output_type=output_type,
  ).images


def our_latents(sd, params, sampler):
  context, negative = (
    stable_diffusion.encode_text(
      sd, params, stable_diffusion.tokenize(sd, texts)
    )
    for texts in (PROMPTS, [NEGATIVE])
  )
  return stable_diffusion.sample_latents(
    sd,
    params,
    context,
    negative,
    row_noise(SEEDS, sd.latent_shape, "torch"),
    num_inference_steps=STEPS,
    guidance_scale=SCALE,
    sampler=sampler,
  )


def our_images(sd, params, **options):
  batches = sampling.generate(
    sd,
    params,
    PROMPTS,
    SEEDS,
    **{
      "negative_prompt": NEGATIVE,
      "guidance_scale": SCALE,
      "num_inference_steps": STEPS,
      "noise_source": "torch",
      "batch_size": 2,
      **options,
    },
  )
  return np.concatenate(list(batches))


def largest_error(ours, theirs):
  assert ours.shape == theirs.shape
  return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


# Both settings are taken from the folder, as the other side takes them.
@pytest.mark.filterwarnings("ignore:sampler='(ddim|lms)' draws with")
@pytest.mark.parametrize(
  "name, sampler",
  [
    # The others are compared step by step in samplers_parity_test.
    *(
      pytest.param(
        "sd1",
        sampler,
        marks=[] if sampler in ("ddim", "pndm") else pytest.mark.slow,
      )
      for sampler in SAMPLERS
    ),
    ("one_level", None),
    ("sd2", None),
    pytest.param("three_levels", None, marks=pytest.mark.slow),
    pytest.param("sd2", "euler", marks=pytest.mark.slow),
  ],
)
def test_latents_equal_torch(name, sampler, folders, loaded):
  theirs = torch_run(folders[name], sampler, "latent").numpy()
  ours = np.asarray(our_latents(*loaded[name], sampler))
  # Neither vanished nor blown up: then equality would say little.
  assert 0.1 < np.abs(theirs).max() < 1e4
  found = largest_error(ours, np.moveaxis(theirs, 1, -1))
  assert found < TOLERANCE


def uint8(images):
  """torch's own rounding of its [0, 1] images."""
  return (images * 255).round().astype(np.int32)


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_images_equal_torch_and_so_do_saved_ones(
  name, folders, loaded, tmp_path
):
  sd, params = loaded[name]
  theirs = uint8(torch_run(folders[name], None, "np"))
  ours = our_images(sd, params)
  assert ours.dtype == np.uint8 and ours.std() > 10
  assert np.abs(ours - theirs).max() <= 1
  stable_diffusion.save(sd, params, tmp_path / "saved")
  again = uint8(torch_run(tmp_path / "saved", None, "np"))
  np.testing.assert_array_equal(again, theirs)


def test_without_guidance(folders, loaded):
  theirs = uint8(torch_run(folders["sd1"], None, "np", scale=1.0))
  ours = our_images(*loaded["sd1"], guidance_scale=1.0)
  assert np.abs(ours - theirs).max() <= 1


def test_a_half_precision_folder_is_computed_in_float32(tmp_path):
  """As most published folders: the config says float16, for the weights."""
  tiny_pipelines.write(tmp_path, "one_level", dtype=torch.float16)
  config = json.loads((tmp_path / "text_encoder/config.json").read_text())
  assert config["dtype"] == "float16"
  sd, params = stable_diffusion.load(tmp_path)
  encoder = transformers.CLIPTextModel.from_pretrained(
    tmp_path / "text_encoder", dtype=torch.float32
  )
  ids = stable_diffusion.tokenize(sd, PROMPTS)
  ours = stable_diffusion.encode_text(sd, params, ids)
  with torch.no_grad():
    theirs = encoder(torch.from_numpy(ids).long()).last_hidden_state
  assert largest_error(np.asarray(ours), theirs.numpy()) < 1e-5
