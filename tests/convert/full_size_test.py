"""Conversion at Stable Diffusion 1 size; random weights, 13 GB of disk."""

import gc
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from safetensors import safe_open

from tests.support import single_files, tiny_pipelines
from unlearning_jax.convert import sd1

torch = pytest.importorskip("torch")
pytestmark = [
  pytest.mark.torch,
  pytest.mark.slow,
  pytest.mark.filterwarnings("ignore::UserWarning"),
  pytest.mark.filterwarnings("ignore::FutureWarning"),
]
ROOT = pathlib.Path(__file__).resolve().parents[2]
PEAK_GIB = 9
# The peak that the kernel reports of a child is never below what its parent
# held when it started it, and a test's process may hold gigabytes. So a small
# process stands between.
_PEAK = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20)
sys.exit(code)
"""


def _write(folder):
  """The three models, one in memory at a time."""
  from diffusers import AutoencoderKL, UNet2DConditionModel
  from transformers import CLIPTextConfig, CLIPTextModel

  torch.manual_seed(0)
  tiny_pipelines.write_frame(folder)
  for part, make in (
    ("unet", UNet2DConditionModel.from_config),
    ("vae", AutoencoderKL.from_config),
    ("text_encoder", lambda c: CLIPTextModel(CLIPTextConfig(**c))),
  ):
    make(sd1.CONFIGS[part]).save_pretrained(folder / part)
    gc.collect()


def _tensors(folder, part):
  (file,) = (folder / part).glob("*.safetensors")
  with safe_open(file, framework="pt") as tensors:
    return {
      name.removeprefix("text_model."): tensors.get_tensor(name)
      for name in tensors.keys()  # noqa: SIM118
    }


def _convert(folder, *flags):
  """Runs the script; returns its peak memory in GiB."""
  script = [sys.executable, "-m", "launch.convert", *flags]
  done = subprocess.run(
    [sys.executable, "-c", _PEAK, *script],
    cwd=folder,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return float(done.stdout.splitlines()[-1])


def _assert_equal(expected, found):
  for part in ("text_encoder", "unet", "vae"):
    ours, theirs = _tensors(found, part), _tensors(expected, part)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
      assert torch.equal(ours[name], tensor), name


def test_folder_and_single_file(tmp_path):
  from diffusers import StableDiffusionPipeline

  source, out = tmp_path / "source", tmp_path / "out"
  source.mkdir()
  _write(source)
  peak = _convert(tmp_path, "--input=source", "--output=out")
  print(f"folder to folder: peak {peak:.1f} GiB")
  assert peak < PEAK_GIB
  _assert_equal(source, out)
  pipeline = StableDiffusionPipeline.from_pretrained(out)
  assert pipeline.unet.num_parameters() == 859_520_964
  assert torch.equal(
    pipeline.unet.conv_in.weight, _tensors(source, "unet")["conv_in.weight"]
  )
  del pipeline
  shutil.rmtree(out)
  gc.collect()
  states = {p: _tensors(source, p) for p in ("text_encoder", "unet", "vae")}
  file = single_files.from_diffusers(states, 2, 4)
  torch.save({"state_dict": file, "global_step": 1}, tmp_path / "sd.ckpt")
  del states, file
  gc.collect()
  peak = _convert(tmp_path, "--input=sd.ckpt", "--base=source", "--output=out")
  print(f"single file to folder: peak {peak:.1f} GiB")
  assert peak < PEAK_GIB
  _assert_equal(source, out)
