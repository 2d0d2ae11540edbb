"""Diffusers folders against torch diffusers, both ways."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.support import tiny_pipelines
from unlearning_jax import convert
from unlearning_jax.convert import folder, hub

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytestmark = [
  pytest.mark.torch,
  # diffusers' own, about accelerate and about attributes it reads itself.
  pytest.mark.filterwarnings("ignore::FutureWarning"),
  pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """One folder by torch, and the models in it."""
  path = tmp_path_factory.mktemp("written") / "model"
  path.mkdir()
  return path, tiny_pipelines.write(path)


@pytest.fixture
def model(written, tmp_path):
  """A copy of that folder, to spoil."""
  return shutil.copytree(written[0], tmp_path / "model")


def _edit(path, **changes):
  value = json.loads(path.read_text()) | changes
  path.write_text(json.dumps(value))


def _through_flax(files):
  params = convert.to_params(files)
  states = {part: convert.to_torch(tree) for part, tree in params.items()}
  return dataclasses.replace(files, states=states)


def _assert_torch_reads(path, models, dtype=torch.float32):
  pipeline = diffusers.StableDiffusionPipeline.from_pretrained(path)
  assert pipeline.safety_checker is None
  for part, expected in models.items():
    found = getattr(pipeline, part).state_dict()
    expected = expected.state_dict()
    assert set(found) == set(expected)
    for name, tensor in expected.items():
      assert found[name].dtype == dtype or part != "text_encoder", name
      assert torch.equal(found[name].to(dtype), tensor.to(dtype)), name
  return pipeline


@pytest.mark.parametrize("name", tiny_pipelines.CONFIGS)
def test_there_and_back_is_exact(name, tmp_path):
  source, target = tmp_path / "source", tmp_path / "target"
  source.mkdir()
  models = tiny_pipelines.write(source, name)
  files = _through_flax(convert.load_folder(source))
  convert.save_folder(target, files)
  pipeline = _assert_torch_reads(target, models)
  assert type(pipeline.scheduler).__name__ == "PNDMScheduler"
  assert pipeline.scheduler.config.steps_offset == 1
  assert pipeline.tokenizer("ab")["input_ids"]
  again = convert.load_folder(target)
  assert convert.fingerprint(again.states) == convert.fingerprint(files.states)


def test_clip_keys_are_written_with_their_prefix(written, tmp_path):
  # transformers 4 leaves random weights where the prefix is missing.
  convert.save_folder(tmp_path / "out", convert.load_folder(written[0]))
  state = convert.read_state_dict(
    tmp_path / "out" / "text_encoder" / "model.safetensors"
  )
  assert all(name.startswith("text_model.") for name in state)


@pytest.mark.parametrize(
  "options",
  [
    {"max_shard_size": "40KB"},
    {"max_shard_size": "40KB", "variant": "fp16"},
    {"dtype": torch.float16, "variant": "fp16"},
    {"dtype": torch.bfloat16},
    {"pickled": True},
  ],
  ids=["sharded", "sharded_variant", "fp16", "bf16", "bin"],
)
def test_ways_torch_writes_a_folder(options, tmp_path):
  options = dict(options)
  pickled = options.pop("pickled", False)
  models = tiny_pipelines.write(tmp_path, **options)
  if pickled:
    for part in models:
      _as_bin(tmp_path / part)
  files = convert.load_folder(tmp_path)
  for part, model in models.items():
    stored, found = (
      {name.removeprefix("text_model."): value for name, value in state.items()}
      for state in (model.float().state_dict(), files.states[part])
    )
    assert set(found) == set(stored)
    for name, value in stored.items():
      assert found[name].dtype == np.float32
      np.testing.assert_array_equal(found[name], value.numpy(), err_msg=name)


def _as_bin(component):
  """Rewrites a component's weights as torch pickles, as in 2022."""
  (file,) = component.glob("*.safetensors")
  state = {k: torch.tensor(v) for k, v in convert.read_state_dict(file).items()}
  name = "pytorch_model.bin" if file.stem == "model" else f"{file.stem}.bin"
  torch.save(state, component / name)
  file.unlink()


def test_full_precision_is_preferred_and_variants_can_be_asked_for(model):
  unet = model / "unet"
  plain = unet / "diffusion_pytorch_model.safetensors"
  half = unet / "diffusion_pytorch_model.fp16.safetensors"
  shutil.copy(plain, half)
  assert folder.find_weights(unet) == plain
  assert folder.find_weights(unet, "fp16") == half
  plain.unlink()
  assert folder.find_weights(unet) == half
  with pytest.raises(ValueError, match=r"unet: no weights of variant 'ema'"):
    folder.find_weights(unet, "ema")


def test_half_precision(written, tmp_path):
  files = convert.load_folder(written[0])
  convert.save_folder(tmp_path / "out", files, dtype="float16")
  _assert_torch_reads(tmp_path / "out", written[1], torch.float16)
  unet = tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors"
  assert unet.stat().st_size < 0.6 * sum(
    value.nbytes for value in files.states["unet"].values()
  )


def test_folder_of_the_flax_days(model, written):
  from flax import serialization

  files = convert.load_folder(model)
  params = convert.to_params(files)
  for part, tree in params.items():
    (file,) = (model / part).glob("*.safetensors")
    file.unlink()
    name = "flax_model" if part == "text_encoder" else "diffusion_flax_model"
    content = serialization.msgpack_serialize(tree)
    (model / part / f"{name}.msgpack").write_bytes(content)
  for part in ("unet", "vae"):
    config = json.loads((model / part / "config.json").read_text())
    kind = "Flax" + config["_class_name"]
    _edit(model / part / "config.json", _class_name=kind)
    _edit(model / folder.MARK, **{part: ["diffusers", kind]})
  _edit(
    model / folder.MARK,
    _class_name="FlaxStableDiffusionPipeline",
    text_encoder=["transformers", "FlaxCLIPTextModel"],
    scheduler=["diffusers", "FlaxPNDMScheduler"],
  )
  _edit(
    model / "scheduler" / "scheduler_config.json",
    _class_name="FlaxPNDMScheduler",
  )
  found = convert.load_folder(model)
  assert convert.fingerprint(found.states) == convert.fingerprint(files.states)
  convert.save_folder(model.parent / "out", found)
  _assert_torch_reads(model.parent / "out", written[1])


# Bad folders.


@pytest.mark.parametrize(
  "gone",
  [
    "model_index.json",
    "unet/config.json",
    "scheduler/scheduler_config.json",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
  ],
)
def test_missing_file(gone, model):
  (model / gone).unlink()
  with pytest.raises(ValueError, match=f"{gone}: no such file"):
    convert.load(model)


def test_missing_weights(model):
  (model / "vae" / "diffusion_pytorch_model.safetensors").unlink()
  pattern = r"vae: no weights such as diffusion_pytorch_model\.safetensors; "
  with pytest.raises(ValueError, match=pattern + r"it holds \['config\.json'"):
    convert.load(model)


def test_a_checkpoint_of_torch_distributed(tmp_path):
  (tmp_path / "__0_0.distcp").write_bytes(b"x")
  with pytest.raises(ValueError, match="dcp_to_torch .* weights.pt"):
    convert.load(tmp_path)


def test_truncated_weights(model):
  file = model / "unet" / "diffusion_pytorch_model.safetensors"
  file.write_bytes(file.read_bytes()[:-1])
  with pytest.raises(ValueError, match=r"unet/diffusion_pytorch_model\.safet"):
    convert.load(model)


def test_nan(model):
  file = model / "unet" / "diffusion_pytorch_model.safetensors"
  state = {k: v.copy() for k, v in convert.read_state_dict(file).items()}
  state["conv_in.weight"][0, 0, 0, 0] = np.nan
  save_file(state, file)
  with pytest.raises(ValueError, match=r"unet/.*'conv_in\.weight' holds NaN"):
    convert.load(model)


@pytest.mark.parametrize(
  "changes, pattern",
  [
    (
      {"_class_name": "StableDiffusionXLPipeline"},
      "'StableDiffusionXLPipeline",
    ),
    ({"_class_name": None}, "_class_name=None is not supported; allowed: Sta"),
    ({"text_encoder_2": ["transformers", "CLIPTextModel"]}, "'text_encoder_2'"),
    ({"unet": ["diffusers", "UNet2DModel"]}, "unet is .*allowed: UNet2DCond"),
    ({"vae": [None, None]}, "vae is .*allowed: AutoencoderKL"),
    ({"controlnet": ["diffusers", "ControlNetModel"]}, "'controlnet'"),
  ],
)
def test_other_pipelines(changes, pattern, model):
  _edit(model / folder.MARK, **changes)
  with pytest.raises(ValueError, match=rf"model_index\.json.*{pattern}"):
    convert.load(model)


def test_config_that_does_not_fit_the_weights(model):
  _edit(model / "unet" / "config.json", layers_per_block=1)
  with pytest.raises(ValueError, match="unet: weights do not fit") as error:
    convert.to_params(convert.load(model))
  assert "extra: " in str(error.value) and "resnets" in str(error.value)


def test_a_choice_that_folders_do_not_offer(model):
  with pytest.raises(ValueError, match="ema=False is a choice in single files"):
    convert.load(model, ema=False)


def test_names_that_are_neither(tmp_path):
  with pytest.raises(ValueError, match="no such file or folder"):
    convert.load(tmp_path / "nowhere")
  with pytest.raises(ValueError, match="no weights such as"):
    convert.load(tmp_path)


# The hub.


def test_hub_without_network(monkeypatch):
  import huggingface_hub

  def unreachable(*_, **__):
    raise ConnectionError("no route to host")

  monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
  with pytest.raises(ValueError, match="no route to host") as error:
    convert.load("owner/a-model")
  assert "hf download owner/a-model" in str(error.value)


@pytest.mark.parametrize("pickled", [False, True])
def test_hub_downloads_safetensors_first(pickled, model, written, monkeypatch):
  import fnmatch

  import huggingface_hub

  if pickled:
    for part in written[1]:
      _as_bin(model / part)
  (model / "unet" / "huge.ckpt").write_text("")
  local = model.parent / "cache"
  calls = []

  def snapshot_download(repo_id, revision, allow_patterns):
    calls.append((repo_id, revision))
    for file in model.rglob("*"):
      name = file.relative_to(model).as_posix()
      if any(fnmatch.fnmatch(name, p) for p in allow_patterns):
        (local / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, local / name)
    return str(local)

  monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
  files = convert.load("owner/a-model@v2")
  # First the configs alone, then weights.
  assert calls == [("owner/a-model", "v2")] * (2 + pickled)
  expected = convert.fingerprint(convert.load(model).states)
  assert convert.fingerprint(files.states) == expected
  assert not list(local.rglob("*.ckpt"))


@pytest.mark.parametrize(
  "name", ["a", "a/b/c", "/a/b", "../b", "a b/c", "a/b@"]
)
def test_what_is_no_hub_id(name):
  assert not hub.is_hub_id(name)


# Writing.


def test_a_folder_is_not_overwritten_unasked(model):
  files = convert.load(model)
  before = {p: p.stat().st_mtime_ns for p in model.rglob("*")}
  with pytest.raises(ValueError, match="exists; replace it with --overwrite"):
    convert.save_folder(model, files)
  assert {p: p.stat().st_mtime_ns for p in model.rglob("*")} == before


def test_a_folder_can_replace_itself(model):
  files = convert.load(model)
  convert.save_folder(model, files, overwrite=True)
  again = convert.load(model)
  assert convert.fingerprint(again.states) == convert.fingerprint(files.states)
  assert [p.name for p in model.parent.iterdir()] == ["model"]


def test_nothing_is_left_when_writing_fails(model):
  files = convert.load(model)
  files.states["vae"]["decoder.conv_in.bias"][0] = np.inf
  out = model.parent / "out"
  with pytest.raises(ValueError, match=r"'decoder\.conv_in\.bias'"):
    convert.save_folder(out, files)
  assert [p.name for p in model.parent.iterdir()] == ["model"]


def test_a_folder_needs_a_tokenizer(model):
  files = dataclasses.replace(convert.load(model), tokenizer=None)
  with pytest.raises(ValueError, match="needs a tokenizer"):
    convert.save_folder(model.parent / "out", files)
  with pytest.raises(ValueError, match="'half'; allowed: float32, float16"):
    convert.save_folder(model.parent / "out", files, dtype="half")
