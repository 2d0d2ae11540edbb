"""`launch.finetune` on each source of data, for each part that may train."""

import csv
import types

import jax
import numpy as np
import PIL.Image
import pytest
from unlearning_jax.configs import finetune_full

from tests.stable_diffusion_test import make_files
from tests.support.scripts import script
from unlearning_jax import (
  data,
  finetune,
  sharding,
  stable_diffusion,
)
from unlearning_jax.edits import load_edit
from unlearning_jax.experiments import tuning
from unlearning_jax.shapes import builder

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


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  files = make_files(tmp_path_factory.mktemp("model"), **SMALL)
  return stable_diffusion.from_files(files)


@pytest.fixture
def table(tmp_path):
  """A CSV of three images, beside two columns that nobody asks for."""
  path = tmp_path / "images.csv"
  with open(path, "w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(("id", "said", "file_name"))
    for i, caption in enumerate(CAPTIONS):
      pixels = np.random.default_rng(i).integers(0, 256, (12, 8, 3), np.uint8)
      PIL.Image.fromarray(pixels).save(tmp_path / f"{i}.png")
      rows.writerow((i, caption, f"{i}.png"))
  return path


def sourced(source, path, caption):
  config = finetune_full.get_config()
  config.data.source, config.data.path = source, str(path)
  config.data.caption = caption
  return config


def test_the_images_of_a_table(table):
  config = sourced("csv", table, "said")
  tuning.check(config)
  assert tuning.examples(config) == data.image_table(table, caption="said")
  assert tuple(row.caption for row in tuning.examples(config)) == CAPTIONS
  config.data.caption = "text"
  with pytest.raises(ValueError, match="no 'text'; the row has id, said"):
    tuning.examples(config)


def test_the_images_of_a_prepared_dataset(monkeypatch, tmp_path):
  for size in builder.Shapes.BUILDER_CONFIGS:
    monkeypatch.setattr(size, "train", 4)
    monkeypatch.setattr(size, "heldout", 2)
  made = builder.build(tmp_path, "tiny")
  config = sourced("tfds", made.data_dir, "caption")
  config.data.split = "heldout"
  tuning.check(config)
  found = tuning.examples(config)
  wanted = list(made.as_data_source(split="heldout"))
  assert len(found) == len(wanted) == 2
  for example, row in zip(found, wanted, strict=True):
    assert example.caption == row["caption"].decode()
    np.testing.assert_array_equal(example.image, row["image"])


@pytest.mark.parametrize(
  "train",
  [
    pytest.param("full", marks=pytest.mark.slow),
    pytest.param("cross", marks=pytest.mark.slow),
    "kv",
    "text_encoder",
  ],
)
def test_what_is_asked_for_trains(train, model, table, monkeypatch, tmp_path):
  """Two steps, read back as a user would have them."""
  finetune_script = script("finetune")
  monkeypatch.setattr(finetune_script.comparison, "load_model", lambda _: model)
  config = sourced("csv", table, "said")
  config.train, config.batch_size, config.num_steps = train, 2, 2
  config.checkpoints, config.log_every = (2,), 1
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  monkeypatch.setattr(sharding, "make_mesh", lambda **_: mesh)
  flags = {"_CONFIG": config, "_WORKDIR": str(tmp_path / "run"), "_EDIT": None}
  for flag, value in (flags | {"_DISTRIBUTED": False}).items():
    monkeypatch.setattr(
      finetune_script, flag, types.SimpleNamespace(value=value)
    )
  finetune_script.main(None)
  edit = load_edit(tmp_path / "run/steps/000002.safetensors")
  parts = finetune.partition(model[1], train)
  assert edit.method == f"{train}@2" and set(edit.leaves) == set(parts.trained)
  for path, leaf in edit.leaves.items():
    assert leaf.dtype == np.float32 and np.isfinite(leaf).all()
    assert not np.array_equal(leaf, parts.trained[path])
