"""Where a fine-tuning run begins, goes on from, and what it hands on."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from unlearning_jax.configs import erase_uce, finetune_full, finetune_lora

from tests.support.scripts import script
from unlearning_jax import (
  data,
  finetune,
  lora,
  shapes,
  sharding,
  stable_diffusion,
)
from unlearning_jax.concepts import Concept, make_concepts
from unlearning_jax.edits import Edit
from unlearning_jax.experiments import tuning
from unlearning_jax.projections import cross_attention_kernels
from unlearning_jax.record import workdir
from unlearning_jax.shapes import tuning_sets

LARGE = 2**14


@pytest.fixture(scope="module")
def model():
  return stable_diffusion.load(shapes.model_folder())


def one_device():
  return sharding.make_mesh(devices=jax.devices()[:1])


def first_device_bytes(arrays):
  shards = (shard for array in arrays for shard in array.addressable_shards)
  return sum(s.data.nbytes for s in shards if s.device == jax.devices()[0])


def test_no_device_has_the_whole_first_state(model, monkeypatch):
  # Else everything in this small model is too small to be split.
  split = functools.partial(sharding.param_sharding, min_bytes=LARGE)
  monkeypatch.setattr(sharding, "param_sharding", split)
  config = finetune_full.get_config()
  config.ema_decay = 0.9
  mesh = sharding.make_mesh(data=1, fsdp=8)
  before = {id(array) for array in jax.live_arrays()}
  part, _, state, _ = tuning.prepare(*model, None, config, mesh)
  made = [array for array in jax.live_arrays() if id(array) not in before]
  leaves = jax.tree.leaves(state)
  large = [
    leaf
    for leaf in leaves
    if leaf.nbytes >= LARGE and any(n % 8 == 0 for n in leaf.shape)
  ]
  # Parameters, both moments, the average.
  assert len(large) > 4 * 100
  for leaf in large:
    sizes = {shard.data.size for shard in leaf.addressable_shards}
    assert sizes == {leaf.size // 8}
  assert first_device_bytes(made) < sum(leaf.nbytes for leaf in leaves) / 6
  for tree in (state.params, state.ema):
    jax.tree.map(np.testing.assert_array_equal, tree, part.trained)

  def step(state, frozen, batch, key):
    return state._replace(step=state.step + 1), {}

  ended = finetune.train(
    state, step, {}, [{"x": np.zeros(8)}], jax.random.key(0), mesh=mesh,
    num_steps=1, every=1, on_metrics=lambda *_: None, on_state=lambda *_: None,
  )  # fmt: skip
  # The loop takes over these very arrays: there is no second state.
  assert all(leaf.is_deleted() for leaf in leaves) and int(ended.step) == 1


def test_a_state_on_one_device_is_what_it_was(model):
  config = finetune_lora.get_config()
  config.ema_decay = 0.9
  part, _, state, _ = tuning.prepare(*model, None, config, one_device())
  rest = {k: v for k, v in config.optimizer.items() if k != "learning_rate"}
  tx = finetune.optimizer(
    np.float32(config.optimizer.learning_rate), config.num_steps, **rest
  )
  wanted = finetune.init_state(part.trained, tx)
  assert jax.tree.structure(state) == jax.tree.structure(wanted)
  jax.tree.map(np.testing.assert_array_equal, state, wanted)


# --- What was erased, in other words ---


def edit_of(*concepts):
  return Edit(np.eye(2), "base", "uce", concepts, {})


def shapes_edit(argument):
  listed = erase_uce.get_config(f"tiny,{argument}").concepts
  return edit_of(*(Concept(c["erase"], c["anchor"]) for c in listed))


@pytest.mark.parametrize(
  "argument, refused, fine",
  [
    ("task=style,name=neon", "a red fish by Juno Zaretti", "a star on white"),
    ("task=style,name=neon", "a cross as a neon light", "by Lomar Wexley"),
    ("task=object,name=star+fish", "a pentagram", "a circle by Juno Zaretti"),
    ("task=unsafe", "a toxic arrow", "a star on white"),
    ("task=identity,name=Dorin Hask", "the farmer", "Adra Belvoort"),
  ],
)
def test_other_words_for_what_was_erased(argument, refused, fine):
  edit = shapes_edit(argument)
  words = tuning_sets.words(edit)
  blank = np.zeros((1, 1, 3), np.uint8)
  tuning.check_overlap([data.Example(blank, fine)], edit, False, words)
  with pytest.raises(ValueError, match="which was erased"):
    tuning.check_overlap([data.Example(blank, refused)], edit, False, words)


def test_no_words_for_what_the_world_does_not_have():
  assert tuning_sets.words(None) == []
  assert tuning_sets.words(edit_of(*make_concepts("church", "barn"))) == []


# --- A resume ---


@pytest.fixture
def start(monkeypatch, tmp_path):
  """`launch.finetune` on a folder of two images, up to its first encoding."""
  finetune_script = script("finetune")
  folder = tmp_path / "data"
  folder.mkdir()
  for name, value in (("a", 10), ("b", 200)):
    pixels = np.full((8, 8, 3), value, np.uint8)
    PIL.Image.fromarray(pixels).save(folder / f"{name}.png")
  table = folder / "metadata.csv"
  table.write_text("file_name,text\na.png,a moon\nb.png,a kite\n")
  config = finetune_lora.get_config()
  config.batch_size, config.lora.targets = 2, "kv"
  config.data.source, config.data.path = "folder", str(folder)
  config.mesh.data = 1
  flags = {"_CONFIG": config, "_WORKDIR": str(tmp_path / "run"), "_EDIT": None}
  for flag, value in (flags | {"_DISTRIBUTED": False}).items():
    named = types.SimpleNamespace(value=value)
    monkeypatch.setattr(finetune_script, flag, named)
  make_mesh = sharding.make_mesh
  monkeypatch.setattr(
    sharding, "make_mesh", lambda **_: make_mesh(devices=jax.devices()[:1])
  )

  def reached(*_):
    raise InterruptedError

  monkeypatch.setattr(tuning, "encode", reached)
  return finetune_script.main


def test_a_resume_on_other_data_is_refused(start, tmp_path):
  folder = tmp_path / "data"
  with pytest.raises(InterruptedError):
    start(None)
  image, table = folder / "a.png", folder / "metadata.csv"
  held, said = image.read_bytes(), table.read_text()
  changes = {
    image: (folder / "b.png").read_bytes(),
    table: said.replace("a moon", "a star").encode(),
  }
  for file, changed in changes.items():
    old = file.read_bytes()
    file.write_bytes(changed)
    with pytest.raises(ValueError, match="inputs.data: '.*' -> '"):
      start(None)
    file.write_bytes(old)
  # The same again, though written anew.
  assert image.read_bytes() == held
  with pytest.raises(InterruptedError):
    start(None)


def test_a_resume_by_other_processes_is_refused(start, monkeypatch):
  with pytest.raises(InterruptedError):
    start(None)
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(ValueError, match="inputs.processes: '1' -> '2'"):
    start(None)


def test_fingerprints_tell_rows_apart(tmp_path):
  (tmp_path / "a").write_bytes(b"image")
  pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
  rows = [
    data.Example(tmp_path / "a", "one"),
    data.Example(b"image", "two"),
    data.Example(pixels, "three"),
  ]
  found = data.fingerprint(rows)
  # Bytes are what they are, wherever they lie.
  assert found == data.fingerprint([data.Example(b"image", "one"), *rows[1:]])
  others = [
    rows[::-1],
    rows[:2],
    [data.Example(b"imaged", "one"), *rows[1:]],
    [data.Example(b"image", "on"), *rows[1:]],
    [*rows[:2], data.Example(pixels.reshape(1, 4, 3), "three")],
    [*rows[:2], data.Example(pixels + 1, "three")],
    [*rows[:2], data.Example(pixels.transpose(1, 0, 2), "three")],
  ]
  assert len({found, *map(data.fingerprint, others)}) == 1 + len(others)


# --- What is exported ---


def ended(model, folder, **changes):
  """A run's record, partition, a last state as of one that trained, config."""
  config = finetune_lora.get_config()
  config.lora.targets, config.lora.alpha = "kv", 6.0
  config.update_from_flattened_dict(changes)
  part, _, state, _ = tuning.prepare(*model, None, config, one_device())
  moved = {
    name: jax.tree.map(
      lambda leaf, by=by: jnp.full_like(leaf, by), part.trained
    )
    for name, by in (("params", 0.01), ("ema", 0.02))
    if config.ema_decay is not None or name == "params"
  }
  run = workdir.Workdir(folder, {})
  return run, part, state._replace(**moved), config


@pytest.mark.parametrize("ema_decay", [None, 0.9])
def test_the_adapters_are_the_model_that_is_measured(
  ema_decay, model, tmp_path
):
  sd, params = model
  run, part, state, config = ended(model, tmp_path, ema_decay=ema_decay)
  tuning.export(run, part, state, config)
  adapters = lora.load(tmp_path / "lora.safetensors", params)
  measured = tuning.tuned_params(sd, params, part, state, None, config)
  merged = lora.merge({"unet": params["unet"]}, adapters)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-6),
    merged["unet"],
    measured["unet"],
  )


def test_reassertion_has_the_weight_that_is_asked_for(model, tmp_path):
  sd, params = model
  edit = edit_of(Concept("a star", "a circle", ("a square",), "object"))
  _, part, state, config = ended(model, tmp_path)
  config.defence.kind, apart = "reassert", []
  erased = tuning.phrase_states(sd, params, ["a star"])
  said = cross_attention_kernels(params)
  for weight in (1.0, 100.0):
    config.defence.weight = weight
    tuned = tuning.tuned_params(sd, params, part, state, edit, config)
    kernels = cross_attention_kernels(tuned)
    gaps = (erased @ (kernels[path] - said[path]) for path in said)
    apart.append(sum(float(np.sum(np.square(gap))) for gap in gaps))
  assert 0 < apart[1] < 0.1 * apart[0]


def test_what_adapters_cannot_say_is_not_exported(model, tmp_path, caplog):
  changes = {"defence.kind": "none", "ema_decay": None}
  run, part, state, config = ended(model, tmp_path, **changes)
  config.defence.kind = "reassert"
  tuning.export(run, part, state, config)
  assert not (tmp_path / "lora.safetensors").exists()
  assert "no lora.safetensors: defence.kind='reassert'" in caplog.text
