"""The model and the judge that ship: whole, small, good, and torch's too."""

import hashlib
import itertools
import json

import numpy as np
import pytest

from unlearning_jax import judges, sampling, shapes, stable_diffusion
from unlearning_jax.metrics import accuracy
from unlearning_jax.shapes import dataset, shipping
from unlearning_jax.shapes import prompts as erasure

ASSETS = shapes.model_folder().parent
MEASURED = "model_on_heldout_prompts"
CARD = json.loads((ASSETS / "model_card.json").read_text())


def test_the_card_describes_the_files_that_are_there():
  files = {
    path.relative_to(ASSETS).as_posix(): path
    for path in ASSETS.rglob("*")
    if path.is_file() and path.name != "model_card.json"
  }
  assert set(CARD["sha256"]) == set(files)
  for name, path in files.items():
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert CARD["sha256"][name] == digest, name
  assert sum(path.stat().st_size for path in files.values()) < 16e6


def test_the_card_tells_how_each_part_was_made():
  assert set(CARD["training"]) == {"judge", "vae", "clip", "unet"}
  for stage, made in CARD["training"].items():
    assert made["config"]["stage"] == stage
    assert made["steps"] == made["config"]["num_steps"]
    assert made["seconds"] > 0
  # The judge never saw a seed of what it judges.
  seeds = {s: t["config"]["seed"] for s, t in CARD["training"].items()}
  assert all(seeds["judge"] != seeds[s] for s in ("vae", "clip", "unet"))


def test_the_judge_knows_held_out_renders():
  drawn = dataset.dataset(400, 7, "heldout")
  scores = judges.load("shapes")(drawn["images"])
  for head, labels in drawn["labels"].items():
    known = labels >= 0
    right = scores[head].argmax(-1)[known] == labels[known]
    assert right.mean() > 0.97, head


def test_the_judge_refuses_other_images():
  referee = judges.load("shapes")
  with pytest.raises(ValueError, match="float32"):
    referee(np.zeros((1, 32, 32, 3), np.float32))
  with pytest.raises(ValueError, match="64, 64"):
    referee(np.zeros((1, 64, 64, 3), np.uint8))


def test_the_model_draws_what_is_asked():
  sd, params = stable_diffusion.load(shapes.model_folder())
  rows = erasure.prompt_rows([], 0, 60, seed=5)
  drawn = shipping.judged(
    sd, params, rows, judges.load("shapes"), batch_size=16,
    **CARD["sampling"],
  )  # fmt: skip
  judged = itertools.chain.from_iterable(drawn)
  measures = {m.name: m for m in accuracy.measure(judged)}
  # Other prompts than the card's; three standard deviations of its rate.
  for head in ("object", "style", "identity", "colour", "hazard"):
    found, told = measures[f"{head}/all/others"], CARD[MEASURED][f"{head}/all"]
    spread = (max(told[0] * (1 - told[0]), 0.01) / found.n) ** 0.5
    assert abs(found.value - told[0]) < 3 * spread + 0.01, head


@pytest.mark.torch
def test_torch_opens_the_folder_and_draws_the_same():
  torch = pytest.importorskip("torch")
  diffusers = pytest.importorskip("diffusers")
  prompts, seeds = ["a red star on white", "a blue house"], [3, 4]
  pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
    shapes.model_folder(), dtype=torch.float32
  )
  pipeline.set_progress_bar_config(disable=True)
  sd, params = stable_diffusion.load(shapes.model_folder())
  height, width, channels = sd.latent_shape
  noise = torch.cat(
    [
      torch.randn(
        (1, channels, height, width),
        generator=torch.Generator().manual_seed(seed),
      )
      for seed in seeds
    ]
  )
  theirs = pipeline(
    prompts, latents=noise, num_inference_steps=20, guidance_scale=4.0,
    height=32, width=32, output_type="np",
  ).images  # fmt: skip
  (ours,) = sampling.generate(
    sd, params, prompts, seeds, guidance_scale=4.0, num_inference_steps=20,
    noise_source="torch", batch_size=2,
  )  # fmt: skip
  expected = np.round(theirs * 255).astype(int)
  assert np.abs(ours.astype(int) - expected).max() <= 1
