"""What trackers hear of a run is what its record holds."""

import sys
import types

import numpy as np
import pytest

from tests.support import events
from unlearning_jax.record import Workdir, tracking


def recorded(folder, names):
  """A run of two steps and an image; its record."""
  record, trackers = tracking.tracked(Workdir(folder, {"a": 1}), names)
  record.metrics(1, loss=0.5, share=np.float32(0.25))
  record.metrics(2, loss=0.125)
  path = record.save_image("row/one", np.full((4, 6, 3), 200, np.uint8))
  assert path == "images/row/one.png"
  record.append_row({"id": 0})
  for one in trackers:
    one.end({"scale": 0.5, "method": "uce"}, {"erased": 0.75})
  record.mark_done()
  assert record.is_done and record.path == folder
  return record


def test_tensorboard_has_metrics_images_and_settings(tmp_path):
  pytest.importorskip("tensorboardX")
  record = recorded(tmp_path / "run", ["tensorboard"])
  assert record.read_metrics()[2]["loss"] == 0.125
  found = [*events.read(tmp_path / "run/events")]
  scalars = [(t, s, v.simple_value) for t, s, v in found if not v.image.height]
  assert ("loss", 1, 0.5) in scalars and ("loss", 2, 0.125) in scalars
  assert ("share", 1, 0.25) in scalars
  (image,) = (value.image for _, _, value in found if value.image.height)
  assert (image.height, image.width) == (4, 6)
  assert any(t == "erased" and v == 0.75 for t, _, v in scalars)
  tags = {tag for tag, _, _ in found}
  assert "_hparams_/session_start_info" in tags


def test_weights_and_biases_is_asked_to_stay_offline(tmp_path, monkeypatch):
  heard = []

  class Run:
    config = types.SimpleNamespace(update=lambda v: heard.append(("config", v)))
    summary = types.SimpleNamespace(update=lambda v: heard.append(("end", v)))

    def log(self, values, step=None):
      heard.append((step, values))

    def finish(self):
      heard.append("finished")

  fake = types.ModuleType("wandb")
  fake.Image = lambda array: array.shape
  fake.init = lambda **options: heard.append(options) or Run()
  monkeypatch.setitem(sys.modules, "wandb", fake)
  recorded(tmp_path / "run", ["wandb"])
  assert heard[0]["mode"] == "offline" and heard[0]["id"] == "run"
  assert heard[0]["dir"] == str(tmp_path / "run")
  assert heard[1:] == [
    (1, {"loss": 0.5, "share": 0.25}), (2, {"loss": 0.125}),
    (None, {"row/one": (4, 6, 3)}),
    ("config", {"scale": 0.5, "method": "uce"}), ("end", {"erased": 0.75}),
    "finished",
  ]  # fmt: skip


def test_a_real_offline_run_is_written(tmp_path, monkeypatch):
  pytest.importorskip("wandb")
  monkeypatch.setenv("WANDB_SILENT", "true")
  recorded(tmp_path / "run", ["wandb"])
  (file,) = (tmp_path / "run/wandb").glob("offline-run-*/run-run.wandb")
  text = file.read_bytes()
  assert b"erased" in text and b"loss" in text and b"scale" in text


def test_a_tracker_that_is_missing_is_named(monkeypatch):
  with pytest.raises(ValueError, match="track='tensorbord'.*'tensorboard'"):
    tracking.check(["tensorbord"])
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(ValueError, match=r"wandb is not.*jax\[tracking\]"):
    tracking.check(["wandb"])


def test_without_trackers_the_record_is_itself(tmp_path):
  record = Workdir(tmp_path / "run", {})
  assert tracking.tracked(record, ()) == (record, [])
