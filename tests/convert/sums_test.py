"""A model folder that is written here notices damage; others are as before."""

import shutil

import pytest

from tests.support import narrow
from unlearning_jax import convert, stable_diffusion
from unlearning_jax.convert.output import SUMS
from unlearning_jax.durable import DamagedError

FILES = [
  "text_encoder/model.safetensors",
  "unet/diffusion_pytorch_model.safetensors",
  "vae/diffusion_pytorch_model.safetensors",
  "scheduler/scheduler_config.json",
  "tokenizer/vocab.json",
]


@pytest.fixture
def folder(tmp_path):
  return shutil.copytree(narrow.folder(), tmp_path / "model")


def flip(path):
  """A bit of the last number."""
  data = path.read_bytes()
  at = len(data) - 1
  while path.suffix == ".json" and not data[at : at + 1].isdigit():
    at -= 1
  path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_noticed(name, folder):
  flip(folder / name)
  words = f"{name} is damaged: .*changed on purpose, delete {folder / SUMS}"
  for load in (convert.load, stable_diffusion.load):
    with pytest.raises(DamagedError, match=words):
      load(folder)
  # What the message says to do works: nothing else tells this bit.
  (folder / SUMS).unlink()
  stable_diffusion.load(folder)


def test_a_lost_file_is_noticed(folder):
  (folder / "tokenizer/vocab.json").unlink()
  with pytest.raises(DamagedError, match="vocab.json is missing; bring back"):
    convert.load(folder)


def test_a_single_file_takes_no_damaged_config(folder, tmp_path):
  file = tmp_path / "model.safetensors"
  convert.save_single_file(file, convert.load(folder))
  # Of its base the weights are not read.
  flip(folder / FILES[1])
  convert.load(file, folder)
  flip(folder / FILES[3])
  with pytest.raises(ValueError, match="scheduler_config.json is damaged"):
    convert.load(file, folder)


def test_what_is_beside_the_sums_is_not_compared(folder):
  (folder / "unet" / "README.md").write_text("notes")
  convert.load(folder)


def test_a_folder_that_replaces_itself_has_new_sums(folder):
  files = convert.load(folder)
  files.states["vae"]["decoder.conv_in.bias"][0] += 1
  convert.save_folder(folder, files, overwrite=True)
  convert.load(folder)
