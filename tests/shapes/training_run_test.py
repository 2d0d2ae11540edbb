"""Training the Shapes model's parts: what configs make, what is left out."""

import json

import jax
import numpy as np
import pytest
from unlearning_jax.configs import (
  train_shapes_clip,
  train_shapes_judge,
  train_shapes_unet,
  train_shapes_vae,
)

from unlearning_jax import settings, sharding
from unlearning_jax.record import Memory
from unlearning_jax.shapes import training_run

CONFIGS = {
  "judge": train_shapes_judge,
  "vae": train_shapes_vae,
  "clip": train_shapes_clip,
  "unet": train_shapes_unet,
}


def given(name, **changes):
  config = CONFIGS[name].get_config()
  config.update_from_flattened_dict(changes)
  return settings.build(training_run.Settings, config.to_dict())


@pytest.mark.parametrize("stage", CONFIGS)
def test_configs_make_settings(stage):
  built = settings.plain(given(stage))
  told = CONFIGS[stage].get_config().to_dict()
  assert built["stage"] == stage
  # What the config does not say is of other stages.
  rest = built.keys() - told.keys()
  assert all(built.pop(key) is None for key in rest)
  texts = [json.dumps(values, sort_keys=True) for values in (built, told)]
  assert texts[0] == texts[1]


def test_every_setting_is_marked():
  assert None not in settings.marks(training_run.Settings).values()


@pytest.mark.parametrize(
  "key, value, words",
  [
    ("stage", "vea", "stage='vea'.*did you mean 'vae'"),
    ("num_steps", 0, "num_steps=0: must be at least 1"),
    ("data.without", "object/sta", "data.without: object='sta'"),
    ("stage", "unet", "unet=None: stage='unet' needs it"),
  ],
)
def test_what_cannot_be_is_refused(key, value, words):
  with pytest.raises(ValueError, match=words):
    given("vae", **{key: value})


def test_a_model_can_be_trained_without_classes():
  data = {
    "label_object": np.array([3, 0, 3, -1]),
    "label_hazard": np.array([0, 1, 1, 0]),
    "images": np.arange(4),
  }
  kept = training_run.without(data, "object/star")
  np.testing.assert_array_equal(kept["images"], [1, 3])
  kept = training_run.without(data, "object/star,hazard/hazard")
  np.testing.assert_array_equal(kept["images"], [3])
  assert training_run.without(data, "") is data
  for what, words in (
    ("object/sta", "data.without: object='sta'.*did you mean 'star'"),
    ("shape/x", "data.without: head='shape'"),
  ):
    with pytest.raises(ValueError, match=words):
      training_run.without(data, what)


def test_a_judge_is_trained_and_kept(tmp_path, monkeypatch):
  """Two steps on sixteen renders, and none is left to do the next time."""
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  monkeypatch.setattr(sharding, "make_mesh", lambda: mesh)
  changes = {"data.size": 16, "batch_size": 8, "num_steps": 2, "log_every": 1}
  chosen, run = given("judge", **changes), Memory(quiet=True)
  folder = tmp_path / "shapes"
  training_run.run(chosen, lambda: run, folder)
  assert run.is_done and run.summary == {"stage": "judge", "steps": 2}
  assert list(run.read_metrics()) == [1, 2]
  kept = (folder / "judge/judge.safetensors").read_bytes()
  for again in (run, Memory(quiet=True)):
    (folder / "judge/judge.safetensors").unlink()
    training_run.run(chosen, lambda again=again: again, folder)
    assert (folder / "judge/judge.safetensors").read_bytes() == kept
