"""A model from whatever names it, drawn, and written for other tools."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.stable_diffusion_test import PROMPTS, SEEDS, files
from unlearning_jax import convert, edits, guidance, stable_diffusion
from unlearning_jax import model as models
from unlearning_jax.concepts import make_concepts
from unlearning_jax.convert import hub
from unlearning_jax.guidance import Guidance
from unlearning_jax.probe import Probe

__all__ = ["files"]
# As diffusers calls the files in a component's folder.
ENDINGS = {"safetensors": "safetensors", "pt": "bin"}
OPTIONS = {"num_inference_steps": 2, "batch_size": 2}


@pytest.fixture(scope="module")
def folder(files, tmp_path_factory):
  path = tmp_path_factory.mktemp("models") / "base"
  stable_diffusion.save(*stable_diffusion.from_files(files), path)
  return path


@pytest.fixture(scope="module")
def base(folder):
  return models.load(folder)


@pytest.fixture(scope="module")
def edit(base):
  width = base.sd.context_shape[1]
  context_map = np.eye(width) + 0.05 * np.random.default_rng(0).normal(
    size=(width, width)
  )
  return edits.Edit(
    context_map,
    edits.Fingerprint.of(base.params, "text"),
    "uce2023 recipe",
    make_concepts(["a"], "b"),
    {},
  )


@pytest.fixture
def run(tmp_path, folder, edit):
  """The folder of an erasure that has ended."""
  config = json.dumps({"model": str(folder), "method": "uce"})
  (tmp_path / "config.json").write_text(config)
  (tmp_path / "DONE").touch()
  edits.save_edit(edit, tmp_path / "edit.safetensors")
  return tmp_path


def test_what_pages_call_it(base, edit):
  assert (base.name, base.with_edit(edit).name) == ("base", "UCE2023")
  guided = base.with_guidance(Guidance("a", method="sld"))
  assert guided.name == "SLD" and guided.base.guidance is None


def test_a_run_its_edit_and_its_steps_are_models(run, base, edit):
  (run / "steps").mkdir()
  for source in (run, run / "edit.safetensors"):
    model = models.load(source)
    assert edits.edit_hash(model.edit) == edits.edit_hash(edit)
    assert model.source == base.source
  tuned = dataclasses.replace(edit, method="uce2023+full@5")
  edits.save_edit(tuned, run / "steps/000005.safetensors")
  later = dataclasses.replace(edit, method="uce2023+full@10")
  edits.save_edit(later, run / "steps/000010.safetensors")
  assert models.load(run).edit.method.endswith("@10")
  five = models.load(run / "steps/000005.safetensors")
  assert five.edit.method.endswith("@5") and five.source == base.source


def test_an_amendment_alone_is_no_run_and_needs_its_base(run, base):
  (run / "config.json").unlink()
  with pytest.raises(ValueError, match=r"names its base; give it: load\("):
    models.load(run)
  assert models.load(run, base=base).name == "UCE2023"


def test_names_are_told_apart():
  """Of models whose methods have a '-' in their names too."""
  listed = ["RECE-JOINT", "RECE-JOINT", "A", "A-2", "A"]
  found = models.distinct(listed)
  assert found == ["RECE-JOINT", "RECE-JOINT-2", "A", "A-2", "A-3"]


def test_a_guided_run_is_a_guided_model(run, base):
  (run / "edit.safetensors").unlink()
  guided = Guidance("a", method="negative_prompt")
  guidance.save(guided, run / "guidance.json")
  # The run calls it so whatever the erasure made.
  known = Probe("drawings", 0.2, None, 0.1, (2, 0, 8))
  known.save(run / "edit.safetensors")
  assert models.load(run).probe == known
  assert models.load(run).guidance == guided
  assert models.load(run).edit is None


def test_an_edit_alone_needs_its_base(run, base, tmp_path, folder):
  alone = tmp_path / "elsewhere/deeper/edit.safetensors"
  alone.parent.mkdir(parents=True)
  shutil.move(run / "edit.safetensors", alone)
  with pytest.raises(ValueError, match=r"names its base; give it: load\("):
    models.load(alone)
  assert models.load(alone, base=base).params is base.params
  assert models.load(alone, base=folder).edit is not None
  with pytest.raises(ValueError, match="is no edit"):
    models.load(folder, base=base)


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_weights_over_a_base_are_a_model(ending, base, edit, folder, tmp_path):
  path = tmp_path / f"unet.{ending}"
  base.with_edit(edit).save(path, "unet")
  wanted = edits.apply_to_params(edit, base.params)
  component = tmp_path / "unet"
  component.mkdir()
  (component / "config.json").write_text('{"_class_name": "UNet2DCond"}')
  shutil.copy(path, component / f"diffusion_pytorch_model.{ENDINGS[ending]}")
  for source, over in ((path, base), (path, folder), (component, base)):
    found = models.load(source, base=over)
    assert found.edit is not None and found.sd.unet == base.sd.unet
    assert found.name == "UNET" and not found.edit.concepts
    jax.tree.map(np.testing.assert_array_equal, found.weights, wanted)
    assert found.base.params is found.params
  again = tmp_path / "again.safetensors"
  models.load(path, base=base).save(again, "unet")
  jax.tree.map(
    np.testing.assert_array_equal, models.load(again, base=base).weights, wanted
  )
  same = tmp_path / "same.safetensors"
  save_file(convert.to_torch(base.params["unet"]), same)
  with (
    pytest.warns(UserWarning, match="no tensor differs"),
    pytest.raises(ValueError, match="same: the edit changes nothing"),
  ):
    models.load(same, base=base)
  with pytest.raises(ValueError, match="is a UNet .* a file has no tokenizer"):
    models.load(path)


def test_a_cpu_shares_the_arrays_and_never_writes_to_them(folder):
  leaf = models.load(folder).params["unet"]["conv_in"]["kernel"]
  before, shared = leaf.copy(), jax.device_put(leaf)
  assert shared.unsafe_buffer_pointer() == leaf.ctypes.data
  # A training step takes its state's memory for its result.
  step = jax.jit(lambda x: x + 1, donate_argnums=0)
  np.testing.assert_array_equal(step(shared), before + 1)
  np.testing.assert_array_equal(leaf, before)


def test_weights_over_an_erased_model_keep_its_erasure(
  base, edit, folder, tmp_path, monkeypatch
):
  states = convert.to_torch(base.params["text_encoder"])
  name = next(name for name in states if name.endswith("fc1.weight"))
  path = tmp_path / "part.safetensors"
  save_file({name: states[name] + 1}, path)
  erased = base.with_edit(edit)
  found = models.load(path, base=erased)
  for wanted, part in ((erased.weights, "unet"), (base.params, "vae")):
    jax.tree.map(
      np.testing.assert_array_equal, found.weights[part], wanted[part]
    )
  assert found.edit is not None and found.edit.concepts == edit.concepts
  text = convert.to_torch(found.weights["text_encoder"])
  np.testing.assert_array_equal(text[name], states[name] + 1)
  guided = base.with_guidance(Guidance("a", method="sld"))
  with pytest.raises(ValueError, match="guided, and a model of .* guidance=N"):
    models.load(path, base=guided)
  # A whole model from the hub would take nothing of the base.
  monkeypatch.setattr(hub, "fetch", lambda *_: folder)
  with pytest.raises(ValueError, match="owner/name is a whole model"):
    models.load("owner/name", base=erased)


def test_what_is_no_finished_erasure_is_refused(run):
  (run / "DONE").unlink()
  with pytest.raises(ValueError, match="has not ended; start it again"):
    models.load(run)
  (run / "DONE").touch()
  (run / "edit.safetensors").unlink()
  with pytest.raises(ValueError, match="made no edit"):
    models.load(run)
  with pytest.raises(ValueError, match="no config.json"):
    models.finished(run / "nowhere")


def test_an_edit_of_another_base_is_refused(base, edit):
  other = jax.tree.map(lambda leaf: leaf + 1, base.params)
  with pytest.raises(
    ValueError, match="from base .*, but these parameters are"
  ):
    dataclasses.replace(base, params=other).with_edit(edit)


def test_a_map_draws_from_the_bases_weights(base, edit):
  model = base.with_edit(edit)
  assert model.drawn_params is base.params
  by_states = model.generate(PROMPTS, SEEDS, **OPTIONS).astype(int)
  merged = models.Model(base.sd, model.weights)
  by_weights = merged.generate(PROMPTS, SEEDS, **OPTIONS)
  assert np.abs(by_states - by_weights).max() <= 1
  assert np.abs(by_states - base.generate(PROMPTS, SEEDS, **OPTIONS)).max() > 5
  with pytest.raises(ValueError, match="none to draw"):
    base.generate([], [])


def test_what_can_be_written(base, edit, tmp_path):
  model, file = base.with_edit(edit), tmp_path / "map.safetensors"
  model.save(str(file), format="context_map")
  again = models.load(file, base=base)
  assert edits.edit_hash(again.edit) == edits.edit_hash(edit)
  model.save(tmp_path / "lora.safetensors", format="kohya", rank=2)
  with pytest.raises(ValueError, match="there is no edit"):
    base.save(file, format="kohya")
  guided = model.with_guidance(Guidance("a"))
  with pytest.raises(ValueError, match="no weight.*model, guidance=None"):
    guided.save(file, format="kohya")
  with pytest.raises(ValueError, match="no weight.*guidance.save"):
    base.with_guidance(Guidance("a")).save(file, format="kohya")
  with pytest.raises(ValueError, match="did you mean 'kohya'"):
    model.save(file, format="koyha")
