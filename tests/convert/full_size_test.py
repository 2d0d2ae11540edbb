"""Files at Stable Diffusion 1 size, one set of random weights; 13 GB of disk.

Each test's work is done in a process of its own, which gives its memory back.
"""

import functools
import gc
import os
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from flax import traverse_util
from safetensors import safe_open

import unlearning_jax as ul
from tests.full_size_test import alone
from tests.support import single_files, tiny_pipelines
from unlearning_jax import edits, exports, sampling
from unlearning_jax.concepts import make_concepts
from unlearning_jax.convert import inspection, sd1
from unlearning_jax.erasures import uce

torch = pytest.importorskip("torch")
pytestmark = [
  pytest.mark.torch,
  pytest.mark.slow,
  pytest.mark.filterwarnings("ignore::UserWarning"),
  pytest.mark.filterwarnings("ignore::FutureWarning"),
]
ROOT = pathlib.Path(__file__).resolve().parents[2]
PEAK_GIB = 9
INSPECTION_GIB = 0.5
# A model, which the CPU shares, the file, and 3 to draw.
TRIP_GIB = 9
# Each costs half a minute. FORMATS="delta folder" tries others.
FORMATS = os.environ.get("FORMATS", "kohya unet").split()
# The peak that the kernel reports of a child is never below what its parent
# held when it started it, and a test's process may hold gigabytes. So a small
# process stands between.
_PEAK = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """A folder with the three models, written one after the other."""
  from diffusers import AutoencoderKL, UNet2DConditionModel
  from transformers import CLIPTextConfig, CLIPTextModel

  folder = tmp_path_factory.mktemp("sd1") / "source"
  folder.mkdir()
  torch.manual_seed(0)
  tiny_pipelines.write_frame(folder)
  for part, make in (
    ("unet", UNet2DConditionModel.from_config),
    ("vae", AutoencoderKL.from_config),
    ("text_encoder", lambda c: CLIPTextModel(CLIPTextConfig(**c))),
  ):
    make(sd1.CONFIGS[part]).save_pretrained(folder / part)
    gc.collect()
  yield folder
  shutil.rmtree(folder.parent)


@pytest.fixture
def place(tmp_path):
  """A folder that is empty again when the test has ended."""
  yield tmp_path
  # pytest keeps the folders of three runs.
  shutil.rmtree(tmp_path)


def _tensors(folder, part):
  (file,) = (folder / part).glob("*.safetensors")
  with safe_open(file, framework="pt") as tensors:
    return {
      name.removeprefix("text_model."): tensors.get_tensor(name)
      for name in tensors.keys()  # noqa: SIM118
    }


def _run(script, folder, *flags):
  """Runs a script; returns what it printed and its peak memory in GiB."""
  command = [sys.executable, "-m", f"launch.{script}", *map(str, flags)]
  done = subprocess.run(
    [sys.executable, "-c", _PEAK, *command],
    cwd=folder,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  *said, peak = done.stdout.splitlines()
  print(f"{script}: peak {float(peak):.2f} GiB")
  return "\n".join(said), float(peak)


def _assert_equal(expected, found, raised=""):
  """Two folders' tensors, but for one that was raised by 1."""
  for part in ("text_encoder", "unet", "vae"):
    ours, theirs = _tensors(found, part), _tensors(expected, part)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
      assert torch.equal(ours[name], tensor + (name == raised)), name


def test_a_folder_comes_back(source, place):
  from diffusers import StableDiffusionPipeline

  out = place / "out"
  _, peak = _run("convert", place, f"--input={source}", f"--output={out}")
  assert peak < PEAK_GIB
  _assert_equal(source, out)
  pipeline = StableDiffusionPipeline.from_pretrained(out)
  assert pipeline.unet.num_parameters() == 859_520_964
  assert torch.equal(
    pipeline.unet.conv_in.weight, _tensors(source, "unet")["conv_in.weight"]
  )


def test_a_single_file_is_inspected_and_converted(source, place):
  states = {p: _tensors(source, p) for p in ("text_encoder", "unet", "vae")}
  # The largest tensor, which shows what an inspection holds.
  name = max(states["unet"], key=lambda name: states["unet"][name].numel())
  states["unet"][name] = states["unet"][name] + 1
  file, path = single_files.from_diffusers(states, 2, 4), place / "sd.ckpt"
  torch.save({"state_dict": file, "global_step": 1}, path)
  del states, file
  gc.collect()
  start = time.process_time()
  assert inspection.inspect(path).kind.name == "single_file"
  assert time.process_time() - start < 2
  _, least = _run("inspect", place, path)
  said, peak = _run("inspect", place, path, f"--base={source}")
  assert "unet: 1 of 686 tensors differ, by 1 at most and 1 in the mean" in said
  # Two models of 4 GB each, a tensor of 0.1 GB at a time.
  assert peak - least < INSPECTION_GIB
  _, peak = _run(
    "convert", place, f"--input={path}", f"--base={source}", "--output=out"
  )
  assert peak < PEAK_GIB
  _assert_equal(source, place / "out", name)


def picture(model):
  """A small picture, of signed numbers: what it costs are the weights."""
  asked = sampling.Request("ab c", 3, size=(64, 64))
  (drawn,) = sampling.draw(
    model.sd, model.drawn_params, [asked], sampling.Sampling(2, 7.5),
    batch_size=1, **model.drawing,
  )  # fmt: skip
  return np.int16(drawn[0])


def _edited(base, by_leaves):
  """The base, erased by UCE; or by leaves, with other tokens."""
  concepts = make_concepts("ab c", "d", ["fg"])
  if not by_leaves:
    hparams = uce.Hparams(preset="uce2025")
    return base.with_edit(
      uce.erase(base.sd, base.params, concepts, None, hparams)
    )
  flat = traverse_util.flatten_dict(base.params, sep="/")
  name = "text_encoder/text_model/embeddings/token_embedding/embedding"
  flat[name] = flat[name][::-1].copy()
  edit = edits.edit_between(
    base.params, traverse_util.unflatten_dict(flat, sep="/"),
    method="turned", concepts=concepts, diagnostics={},
  )  # fmt: skip
  return base.with_edit(edit)


def _file(folder, layout):
  return str(
    folder / (layout if layout == "folder" else f"{layout}.safetensors")
  )


def trips(source, folder):
  """Layout -> pictures of the edited model, and of what is read of its file.

  And the base's. One process, which opens, compiles and edits once.
  """
  base = ul.load(str(source))
  found = {"base": picture(base)}

  @functools.cache
  def edited(by_leaves):
    model = _edited(base, by_leaves)
    return model, picture(model)

  for layout in FORMATS:
    # A text encoder's file cannot hold what UCE changes.
    model, drawn = edited(layout == "text_encoder")
    model.save(_file(folder, layout), layout)
    over = None if layout == "folder" else base
    again = picture(ul.load(_file(folder, layout), base=over))
    found[layout] = drawn, again
  return found


def test_an_edit_draws_the_same_from_its_file(source, place):
  assert set(FORMATS) <= exports.FORMATS.keys()
  found, cost = alone(functools.partial(trips, source), place)
  base = found.pop("base")
  for layout, (drawn, again) in found.items():
    # The edit shows, or else nothing would be proved.
    moved, off = np.abs(drawn - base).max(), np.abs(drawn - again).max()
    print(layout, "moved", moved, "off", off)
    assert moved > 8 and off <= 1, layout
  assert [*found] == FORMATS
  assert cost["peak_gib"] < TRIP_GIB
