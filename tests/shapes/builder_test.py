"""The tfds dataset: built and read back without TensorFlow."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from unlearning_jax.shapes import dataset
from unlearning_jax.shapes.vocabulary import HEADS

ROOT = pathlib.Path(__file__).resolve().parents[2]

_READ = """
import json, sys
from unlearning_jax.shapes import builder
shapes = builder.build(sys.argv[1], "tiny")
rows = []
for split in ("train", "heldout"):
  source = shapes.as_data_source(split=split)
  for i in range(len(source)):
    row = source[i]
    rows.append([split, row["image"].tolist(), row["mask"].tolist(),
                 row["caption"].decode(),
                 {k: int(v) for k, v in row["labels"].items()}])
half = shapes.as_data_source(split="train[:50%]")
loaded = [name for name in ("tensorflow", "torch") if name in sys.modules]
json.dump({"rows": rows, "half": len(half), "loaded": loaded},
          open(sys.argv[2], "w"))
"""


def launch(*flags):
  command = [sys.executable, "-m", "launch.build_shapes", *flags]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def read_back(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tfds")
  done = launch(f"--data_dir={folder}", "--config=tiny")
  assert done.returncode == 0, done.stderr
  assert "train: 512 images" in done.stderr
  out = folder / "rows.json"
  subprocess.run(
    [sys.executable, "-c", _READ, str(folder), str(out)], cwd=ROOT, check=True
  )
  return json.loads(out.read_text())


@pytest.mark.e2e
def test_splits_slice_and_neither_tensorflow_nor_torch_is_loaded(read_back):
  assert read_back["loaded"] == []
  assert read_back["half"] == 256
  splits = [row[0] for row in read_back["rows"]]
  assert (splits.count("train"), splits.count("heldout")) == (512, 128)


@pytest.mark.e2e
@pytest.mark.parametrize("split, n", [("train", 512), ("heldout", 128)])
def test_rows_are_the_dataset_s(read_back, split, n):
  arrays = dataset.dataset(n, 0, split)
  expected = {
    (image.tobytes(), text): i
    for i, (image, text) in enumerate(
      zip(arrays["images"], arrays["captions"], strict=True)
    )
  }
  seen = set()
  for _, image, mask, text, labels in (
    row for row in read_back["rows"] if row[0] == split
  ):
    i = expected[np.array(image, np.uint8).tobytes(), text]
    seen.add(i)
    assert np.array_equal(np.array(mask)[..., 0] == 255, arrays["masks"][i])
    assert labels == {head: int(arrays["labels"][head][i]) for head in HEADS}
  assert len(seen) == n


@pytest.mark.e2e
def test_the_launcher_names_the_nearest_config_and_writes_nothing(tmp_path):
  done = launch(f"--data_dir={tmp_path / 'new'}", "--config=tinny")
  assert done.returncode != 0
  assert "config='tinny' is not known" in done.stderr
  assert "did you mean 'tiny'" in done.stderr
  assert not (tmp_path / "new").exists()
