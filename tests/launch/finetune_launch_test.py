"""Fine-tuning as a user starts it: its configs, its data, its refusals."""

import json
import struct
import sys
import types

import jax
import numpy as np
import pytest
from unlearning_jax.configs import finetune_full, finetune_lora

from tests.support.scripts import script
from unlearning_jax import (
  data,
  shapes,
  sharding,
  stable_diffusion,
)
from unlearning_jax.concepts import make_concepts
from unlearning_jax.edits import Edit, Fingerprint
from unlearning_jax.experiments import tuning
from unlearning_jax.shapes import dataset

CONFIGS = {"full": finetune_full, "lora": finetune_lora}


def one_device():
  return sharding.make_mesh(devices=jax.devices()[:1])


@pytest.mark.parametrize("size", ["tiny", "sd14", "sd21"])
@pytest.mark.parametrize("name", CONFIGS)
def test_configs_are_sound(name, size):
  config = CONFIGS[name].get_config(size)
  tuning.check(config)
  assert config.train == name
  assert (config.model == "shapes") == (size == "tiny")
  assert config.checkpoints[-1] == config.num_steps


@pytest.mark.parametrize(
  "key, value, words",
  [
    ("train", "lorra", "train='lorra'.*did you mean 'lora'"),
    ("num_steps", 0, "num_steps=0"),
    ("checkpoint_every", 0, "checkpoint_every=0: must be at least 1"),
    ("checkpoints", (5, 151), r"checkpoints=\[151\] beyond num_steps=150"),
    ("accumulate", 5, "batch_size=48 is not a multiple of accumulate=5"),
    ("data.source", "web", "data.source='web'.*shapes, folder, csv"),
    ("defence.kind", "projet", "defence.kind='projet'.*did you mean 'project'"),
    ("optimizer.schedule", "linear", "schedule='linear'"),
    ("optimizer.learning_rate", -1e-4, "learning_rate=-0.0001: .* at least 0"),
    ("optimizer.learning_rate", float("inf"), "optimizer.learning_rate=inf"),
    ("optimizer.warmup", 100.0, "optimizer.warmup=100.0: .* share of the"),
    ("optimizer.warmup", 1.0, "optimizer.warmup=1.0: .* from 0 to below 1"),
    ("optimizer.clip_norm", -1.0, "clip_norm=-1.0: .* 0 for no clipping"),
    ("optimizer.b2", 1.0, "optimizer.b2=1.0"),
    ("optimizer.weight_decay", -0.1, "optimizer.weight_decay=-0.1"),
    ("loss.snr_gamma", 0.0, "loss.snr_gamma=0.0: must be above 0; None"),
    ("loss.caption_dropout", 10.0, "caption_dropout=10.0: .* a share, from 0"),
    ("ema_decay", 1.5, "ema_decay=1.5: must be up to 1, or 0 for no average"),
    ("lora.rank", 0, "lora.rank=0: must be at least 1"),
    ("lora.alpha", 0.0, "lora.alpha=0.0: must be above 0"),
    ("defence.k", 0, "defence.k=0"),
    ("defence.energy", 1.5, "defence.energy=1.5"),
    ("defence.weight", -1.0, "defence.weight=-1.0: .* defence.kind='none'"),
  ],
)
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_wrong_config_is_refused(schedule, key, value, words):
  config = finetune_full.get_config()
  config.optimizer.schedule = schedule
  with config.unlocked():
    config.update_from_flattened_dict({key: value})
  with pytest.raises(ValueError, match=words):
    tuning.check(config)


def test_a_defence_of_text_states_that_move():
  config = finetune_full.get_config()
  config.train, config.defence.kind = "text_encoder", "anchor"
  with pytest.raises(ValueError, match="the states themselves move"):
    tuning.check(config)


def test_renders_are_chosen_by_class():
  config = finetune_full.get_config(
    "tiny,only=object/circle+square+heart,without=style/neon"
  )
  config.data.count, config.data.seed = 6, 5
  found = tuning.examples(config)
  assert len(found) == 6
  wanted = []
  for index in range(1000):
    drawn = dataset.example(index, 5, "train")
    scene = drawn.scene
    if scene.object in ("circle", "square", "heart") and scene.style != "neon":
      wanted.append(drawn.caption)
  assert [row.caption for row in found] == wanted[:6]
  for text, words in (
    ("objekt/star", "head in data.only 'objekt'.*nearest: 'object'"),
    ("object/stra", "object in data.only 'stra'.*nearest: 'star'"),
  ):
    config.data.only = text
    with pytest.raises(ValueError, match=words):
      tuning.examples(config)
  config.data.only = "kind/portrait,object/star"
  with pytest.raises(ValueError, match="only 0 of 6"):
    tuning.examples(config)


def test_captions_that_say_what_was_erased_are_refused():
  edit = Edit(
    np.eye(2), "base", "uce", make_concepts(["Star", "neon sign"], "circle"), {}
  )
  blank = np.zeros((1, 1, 3), np.uint8)

  def rows(*captions):
    return [data.Example(blank, caption) for caption in captions]

  tuning.check_overlap(rows("a starling", "neon"), edit, False)
  tuning.check_overlap(rows("a star"), edit, True)
  tuning.check_overlap(rows("a star"), None, False)
  # The steps of a run without an erasure.
  nothing = Edit(np.eye(2), "base", "full@5", (), {})
  tuning.check_overlap(rows("a star"), nothing, False)
  with pytest.raises(ValueError, match="says 'pentagram', which was erased"):
    tuning.check_overlap(rows("a Pentagram"), edit, False, ["pentagram"])
  for caption in ("a red STAR.", "a  neon\nsign of a fish"):
    with pytest.raises(ValueError, match="which was erased.*allow_overlap"):
      tuning.check_overlap(rows("a fish", caption), edit, False)


def test_plurals_say_it_too():
  edit = Edit(
    np.eye(2), "base", "uce", make_concepts(["star", "cross"], "circle"), {}
  )
  blank = np.zeros((1, 1, 3), np.uint8)
  for caption in ("two stars", "Crosses on white"):
    with pytest.raises(ValueError, match="says '(star|cross)', which was"):
      tuning.check_overlap([data.Example(blank, caption)], edit, False)
  for caption in ("a starfish", "the start", "it starts", "she stares", "cros"):
    tuning.check_overlap([data.Example(blank, caption)], edit, False)


def test_events_need_their_package(monkeypatch):
  """Which is found missing before anything is loaded."""
  config = finetune_full.get_config()
  config.tensorboard = True
  monkeypatch.setitem(sys.modules, "tensorboardX", None)
  with pytest.raises(ValueError, match=r"unlearning_jax\[tensorboard\]"):
    tuning.check(config)


def events_of(folder):
  """Tag, step and value of every scalar in a folder of event files."""
  from tensorboardX.proto import event_pb2

  for file in folder.glob("events.*"):
    data, at = file.read_bytes(), 0
    while at < len(data):
      # A record: its length and that's checksum, itself and its checksum.
      (size,) = struct.unpack("<Q", data[at : at + 8])
      event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
      for value in event.summary.value:
        yield value.tag, event.step, value.simple_value
      at += size + 16


@pytest.mark.slow
def test_a_run_writes_the_events_of_its_metrics(monkeypatch, tmp_path):
  pytest.importorskip("tensorboardX")
  finetune = script("finetune")
  config = finetune_lora.get_config("tiny,only=object/circle+moon")
  config.batch_size, config.data.count, config.ema_decay = 8, 8, 0.9
  config.num_steps, config.checkpoints, config.log_every = 3, (3,), 1
  config.tensorboard = True
  flags = {"_CONFIG": config, "_WORKDIR": str(tmp_path), "_EDIT": None}
  for flag, value in (flags | {"_DISTRIBUTED": False}).items():
    monkeypatch.setattr(finetune, flag, types.SimpleNamespace(value=value))
  finetune.main(None)
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  wanted = {line["step"]: line for line in map(json.loads, lines)}
  found = list(events_of(tmp_path / "events"))
  assert len(found) == 3 * 3
  for tag, step, value in found:
    assert value == pytest.approx(wanted[step][tag.removeprefix("train/")])


@pytest.mark.parametrize(
  "batch, parts, images, devices, processes, words",
  [
    (12, 1, 250, 8, 1, "batch_size=12 .* not a multiple of the 8 device"),
    (8, 1, 250, 8, 2, "batch_size=8 .* not a multiple of the 16 device"),
    # A row a part: three devices of four would wait for the one that has it.
    (4, 4, 250, 4, 1, "batch_size=4 with accumulate=4 .* of the 4 device"),
    (8, 2, 250, 2, 2, ""),
    (4, 4, 250, 1, 1, ""),
    (48, 1, 40, 1, 1, "batch_size=48 is more than the 40 images"),
    (6, 1, 7, 1, 3, ""),
    (7, 1, 7, 1, 1, ""),
    (8, 1, 7, 1, 1, "batch_size=8 is more than the 7 images"),
  ],
)
def test_a_batch_that_cannot_be(
  batch, parts, images, devices, processes, words
):
  config = finetune_lora.get_config()
  config.batch_size, config.accumulate = batch, parts
  mesh = sharding.make_mesh(devices=jax.devices()[:devices])
  if not words:
    tuning.check_batch(config, images, mesh, processes)
    return
  with pytest.raises(ValueError, match=words):
    tuning.check_batch(config, images, mesh, processes)


def test_tuning_the_base_where_an_erased_model_is_meant(monkeypatch, tmp_path):
  """An edit that changes nothing is found before anything is read."""
  finetune = script("finetune")
  sd, base = stable_diffusion.load(shapes.model_folder())
  nothing = Edit(
    np.eye(sd.context_shape[1]), Fingerprint.of(base, "text"), "uce",
    make_concepts(["star"], "circle"), {},
  )  # fmt: skip
  monkeypatch.setattr(
    finetune.comparison, "load_edits", lambda paths: {"UCE": nothing}
  )
  config = finetune_lora.get_config("tiny,without=object/star")
  flags = {"_CONFIG": config, "_WORKDIR": str(tmp_path / "run"), "_EDIT": "it"}
  for flag, value in (flags | {"_DISTRIBUTED": False}).items():
    monkeypatch.setattr(finetune, flag, types.SimpleNamespace(value=value))
  with pytest.raises(ValueError, match="it: the model to tune is the base"):
    finetune.main(None)
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["project", "anchor"])
def test_a_defence_needs_an_erasure(kind):
  config = finetune_lora.get_config()
  config.defence.kind = kind
  sd, params = stable_diffusion.load(shapes.model_folder())
  with pytest.raises(ValueError, match="there is no --edit to defend"):
    tuning.prepare(sd, params, None, config, one_device())


def test_runs_that_differ_in_model_rate_and_seed_share_their_program():
  config = finetune_lora.get_config()
  config.lora.targets = "kv"
  sd, params = stable_diffusion.load(shapes.model_folder())
  _, step, state, frozen = tuning.prepare(
    sd, params, None, config, one_device()
  )
  config.optimizer.learning_rate, config.seed = 0.0, 7
  config.data.only = "object/circle"
  _, again, other, zero = tuning.prepare(sd, params, None, config, one_device())
  assert again is step
  assert (frozen["learning_rate"], zero["learning_rate"]) == (
    pytest.approx(1e-3), 0,
  )  # fmt: skip
  path = next(iter(state.params))
  assert (state.params[path]["down"] != other.params[path]["down"]).any()
  # What a program is made of does make another.
  for key, value in (("num_steps", 200), ("accumulate", 2), ("ema_decay", 0.9)):
    with config.unlocked():
      changed = config.copy_and_resolve_references()
      changed.update_from_flattened_dict({key: value})
    assert (
      tuning.prepare(sd, params, None, changed, one_device())[1] is not step
    )


def test_a_flag_can_leave_clipping_and_average_out():
  """By 0: it cannot say None."""
  config = finetune_lora.get_config()
  config.lora.targets, config.ema_decay = "kv", 0.9
  sd, params = stable_diffusion.load(shapes.model_folder())
  made = []
  for off in (None, 0.0):
    config.optimizer.clip_norm = config.ema_decay = off
    tuning.check(config)
    part, step, state, _ = tuning.prepare(
      sd, params, None, config, one_device()
    )
    assert state.ema == ()
    made.append(step)
    tuned = tuning.tuned_params(sd, params, part, state, None, config)
    jax.tree.map(np.testing.assert_array_equal, tuned, params)
  assert made[0] is made[1]


def test_the_base_is_no_start_for_a_study():
  base = {"unet": {"a": np.zeros(2), "b": np.ones(2)}}
  same = {"unet": {"a": base["unet"]["a"], "b": np.ones(2)}}
  with pytest.raises(ValueError, match="mine: the model to tune is the base"):
    tuning.check_start(base, same, "mine")
  same["unet"]["b"] = np.array([1.0, 2.0])
  tuning.check_start(base, same, "mine")
