"""What a user can get wrong: told before anything compiles or is written."""

import types

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from unlearning_jax.configs import erasures

from tests.support.scripts import script
from unlearning_jax import shapes, stable_diffusion

erase = script("erase")

SMALL = {"rows_per_group": 1, "other_rows": 2, "grid_rows": 1, "batch_size": 2}
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def start(monkeypatch, tmp_path):
  """Starts `launch.erase` with some keys changed; compiling is an error."""

  def compiles(*_):
    raise AssertionError("text is encoded: too late for an error")

  monkeypatch.setattr(stable_diffusion, "encode_text", compiles)

  def main(workdir=tmp_path / "run", argument="tiny", **changes):
    config = erasures.erase("uce", argument)
    config.update_from_flattened_dict(SMALL | changes)
    for flag, value in {
      "_CONFIG": config,
      "_WORKDIR": str(workdir),
      "_EVERY": 100,
      "_STRICT": False,
      "_EVENTS": False,
      "_EDIT_ONLY": False,
    }.items():
      monkeypatch.setattr(erase, flag, types.SimpleNamespace(value=value))
    erase.main(None)

  return main


def concepts(*pairs, **more):
  found = tuple({"erase": e, "anchor": a, **more} for e, a in pairs)
  return {"concepts": found}


@pytest.mark.parametrize(
  "changes, message",
  [
    (concepts(), "no concept to erase"),
    (concepts(("  ", "moon")), "'  ' is blank"),
    (concepts(("star", "moon"), ("Star ", "sun")), "'Star ' is given twice"),
    (concepts(("star", " Star")), "'star' equals its anchor ' Star'"),
    (concepts(("star", "moon"), preserve=("star",)), "erased and preserved"),
    (concepts(("star", "moon"), ancor="x"), "ancor.*did you mean 'anchor'"),
    (concepts(("star " * 80, "moon")), "star star.* tokens.*allowed: "),
    (concepts(("star", "moon " * 80)), "moon moon.* tokens.*allowed: "),
    ({"targets": ({"task": "object", "name": "strar"},)}, "mean 'star'"),
    ({"targets": ({"task": "objekt", "name": "star"},)}, "mean 'object'"),
    ({"judge": "shaeps"}, "judge='shaeps'.*shapes"),
    ({"method": "ucce"}, "method='ucce'.*did you mean 'uce'"),
    ({"dtype": "float33"}, "dtype='float33'.*did you mean 'float32'"),
    ({"dtype": "int32"}, "dtype='int32'.*float32, bfloat16"),
    ({"attention": "flash"}, "attention='flash'.*auto, dense, chunked, cudnn"),
    ({"kernels": "quick"}, "kernels='quick' is unknown; allowed: exact, fast"),
    ({"attention": "cudnn"}, "'cudnn'.*float32: set dtype=bfloat16"),
    ({"attention": "cudnn", "dtype": "bfloat16"}, "needs an NVIDIA GPU"),
    ({"seed": -1}, "seed=-1"),
    ({"batch_size": 0}, "batch_size=0"),
    ({"sampling.num_inference_steps": 0}, "num_inference_steps=0"),
    ({"sampling.num_inference_steps": 5000}, "num_inference_steps=5000.*1000"),
    ({"sampling.sampler": "ddmi"}, "sampler='ddmi'.*did you mean 'ddim'"),
    ({"sampling.noise_source": "tourch"}, "'tourch'.*did you mean 'torch'"),
    ({"model": "no/such/model/folder"}, "no/such/model/folder: no such file"),
  ],
)
def test_a_wrong_config(changes, message, start, tmp_path):
  with pytest.raises(ValueError, match=message):
    start(**changes)
  assert not any(tmp_path.iterdir())


def test_templates_that_a_task_lacks(start, tmp_path):
  expand = {"hparams.expand_prompts": True}
  with pytest.raises(ValueError, match="expand_prompts: task 'unsafe'"):
    start(argument="tiny,task=unsafe", model="no/such/model", **expand)
  assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
  "argument", ["tinny", "tiny,taks=style", "tiny,task=x"]
)
def test_a_wrong_config_argument(argument, start):
  with pytest.raises(ValueError, match="config argument"):
    start(argument=argument)


def test_an_unknown_hyperparameter_names_the_nearest(start, tmp_path):
  with pytest.raises(ValueError, match="hparams.lamd: .*did you mean lamb"):
    start(**{"hparams.lamd": 1.0})
  assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"hparams.preset": "uce2024"}, "'uce2024'.*did you mean 'uce2025'"),
    ({"hparams.erase_scale": -1.0}, "erase_scale=-1.0; allowed: .*at least 0"),
    ({"hparams.lamb": -0.5}, "lamb=-0.5"),
  ],
)
def test_a_hyperparameter_that_the_method_refuses(
  changes, message, start, tmp_path
):
  with pytest.raises(ValueError, match=message):
    start(**changes)
  assert not any(tmp_path.iterdir())


def damaged(folder, change):
  """A copy of the Shapes model, with the file that `change` rewrites."""
  for file in shapes.model_folder().rglob("*"):
    copy = folder / file.relative_to(shapes.model_folder())
    if file.is_file():
      copy.parent.mkdir(parents=True, exist_ok=True)
      copy.write_bytes(file.read_bytes())
  change(folder)


def tensors(value):
  def change(folder):
    state = load_file(folder / UNET)
    name = "conv_norm_out.weight"
    state[name] = value(state[name])
    save_file(state, folder / UNET)

  return change


def truncated(folder):
  content = (folder / UNET).read_bytes()
  (folder / UNET).write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda f: (f / UNET).unlink(), "unet: no weights"),
    (lambda f: (f / "vae/config.json").unlink(), "vae/config.json: no such"),
    (lambda f: (f / "tokenizer/vocab.json").unlink(), "vocab.json: no such"),
    (lambda f: (f / "model_index.json").unlink(), "model_index.json: no such"),
    (truncated, f"{UNET}: not a readable safetensors file"),
    (tensors(lambda x: x * np.float32("nan")), "conv_norm_out.weight.*NaN"),
    (tensors(lambda x: x.astype(np.int32)), "conv_norm_out.weight.*int32"),
    (tensors(lambda x: x[:-1]), "conv_norm_out.weight"),
  ],
)
def test_a_damaged_model_folder(change, message, start, tmp_path):
  damaged(tmp_path / "model", change)
  with pytest.raises(ValueError, match=message):
    start(model=str(tmp_path / "model"))
  assert not (tmp_path / "run").exists()


def test_a_workdir_that_cannot_be_written(start, tmp_path):
  (tmp_path / "file").write_text("in the way")
  for workdir in (tmp_path / "file" / "run", "gs://bucket/run", ""):
    with pytest.raises(ValueError, match="workdir: "):
      start(workdir=workdir)
  assert [path.name for path in tmp_path.iterdir()] == ["file"]
