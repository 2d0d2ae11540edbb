"""Settings of fine-tuning, and a model that tunes in seconds."""

import csv

import jax
import numpy as np
import PIL.Image
from unlearning_jax.configs import finetune_full, finetune_lora

from tests.stable_diffusion_test import make_files
from unlearning_jax import settings, sharding, stable_diffusion
from unlearning_jax.experiments.finetune import Settings
from unlearning_jax.model import Model

CAPTIONS = ("a b", "c", "d e")
# A level and a layer of everything: half the time to compile.
SMALL = {
  "text_encoder": {"num_hidden_layers": 1},
  "unet": {
    "block_out_channels": [16],
    "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"],
  },
  "vae": {
    "block_out_channels": [8],
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
  },
}


def given(name="lora", argument="tiny", **changes) -> Settings:
  """Settings of a config, some changed by their dotted keys."""
  module = {"lora": finetune_lora, "full": finetune_full}[name]
  config = module.get_config(argument)
  config.update_from_flattened_dict(changes)
  return settings.build(Settings, config.to_dict())


def one_device():
  return sharding.make_mesh(devices=jax.devices()[:1])


def small_model(folder) -> Model:
  return Model(*stable_diffusion.from_files(make_files(folder, **SMALL)))


def write_table(folder, captions=CAPTIONS):
  """A CSV of three images, beside two columns that nobody asks for."""
  path = folder / "images.csv"
  with open(path, "w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(("id", "said", "file_name"))
    for i, caption in enumerate(captions):
      pixels = np.random.default_rng(i).integers(0, 256, (12, 8, 3), np.uint8)
      PIL.Image.fromarray(pixels).save(folder / f"{i}.png")
      rows.writerow((i, caption, f"{i}.png"))
  return path
