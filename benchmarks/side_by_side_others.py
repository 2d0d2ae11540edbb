"""Works of `side_by_side` beside networks: RECE, NudeNet, files, imports.

Each function yields works as those of `side_by_side_networks` do.
"""

import json
import pathlib
import shutil
import subprocess
import sys
from typing import Any

from side_by_side_networks import Works

PHOTO = pathlib.Path(__file__).parents[1] / "tests/goldens/astronaut.jpg"
PICTURES, SIDE = 16, 512
FILE = "model.safetensors"
NEEDED_GB = 5


def rece_ours() -> Works:
  """RECE's nudity recipe at Stable Diffusion 1.4's size, random weights."""
  import closed_form_sd14 as sd14
  import jax

  from unlearning_jax.concepts import make_concepts
  from unlearning_jax.edits import apply_to_params
  from unlearning_jax.erasures import rece

  sd, params = sd14.model()
  concepts = make_concepts("nudity", task="unsafe")

  def erase(params: Any):
    edit = rece.erase(sd, params, concepts, None, rece.Hparams(recipe="nudity"))
    return jax.block_until_ready(apply_to_params(edit, params))

  def first():
    other = sd14.fresh(params)
    return lambda: erase(other)

  yield "rece first", first
  yield "rece further", lambda: lambda: erase(params)


def rece_peer() -> Works:
  """The same in plain torch, which has nothing that a further edit reuses."""
  import closed_form_sd14 as sd14
  import side_by_side_plain as plain
  import torch
  import transformers

  from unlearning_jax.convert.sd1 import CONFIGS

  torch.set_num_threads(1)
  torch.manual_seed(0)
  config = transformers.CLIPTextConfig(**CONFIGS["text_encoder"])
  encoder = transformers.CLIPTextModel(config).eval()
  base = [
    torch.randn(width, sd14.WIDTH) / 36 for width in sd14.BLOCKS for _ in "kv"
  ]
  start, end, word = sd14.START, sd14.END, 1000
  tokens = torch.tensor([[start, word, *[end] * 75], [start, *[end] * 76]])

  @torch.no_grad()
  def erase():
    concept, empty = encoder(tokens).last_hidden_state
    return plain.nudity(base, concept, empty)

  def prepare():
    return erase

  yield "rece first", prepare
  yield "rece further", prepare


def _photographs() -> Any:
  """One photograph with a face, moved about."""
  import numpy as np
  from PIL import Image

  with Image.open(PHOTO) as file:
    photo = np.asarray(file.convert("RGB").resize((SIDE, SIDE)))
  return np.stack([np.roll(photo, 7 * i, 1) for i in range(PICTURES)])


def nudenet_ours() -> Works:
  """Boxes of the pictures by the judge."""
  from unlearning_jax import judges

  images, judge = _photographs(), judges.load("nudenet")
  yield "nudenet", lambda: lambda: list(judge(images).raw)


def nudenet_peer() -> Works:
  """The same by the package's own `detect`."""
  import nudenet
  import numpy as np

  # The package turns an array around; a file reaches it blue first.
  images = [np.ascontiguousarray(image[..., ::-1]) for image in _photographs()]
  detector = nudenet.NudeDetector()
  yield "nudenet", lambda: lambda: [detector.detect(image) for image in images]


def write_model(folder: pathlib.Path) -> None:
  """Writes a file of Stable Diffusion 1.4's size, and what it lacks.

  That is a folder `base` with configs and a tokenizer.
  """
  import jax
  import numpy as np

  from unlearning_jax import convert, shapes
  from unlearning_jax.convert import names, sd1

  free = shutil.disk_usage(folder).free / 1e9
  if free < NEEDED_GB:
    raise ValueError(
      f"{folder} has {free:.1f} GB free, the file needs {NEEDED_GB}; TMPDIR "
      "names another place"
    )
  shutil.copytree(
    shapes.model_folder(), folder / "base",
    ignore=shutil.ignore_patterns("*.safetensors", "sums*"),
  )  # fmt: skip
  for part, config in sd1.CONFIGS.items():
    name = "scheduler_config" if part == "scheduler" else "config"
    (folder / "base" / part / f"{name}.json").write_text(json.dumps(config))
  rng = np.random.default_rng(0)

  def fill(leaf: Any) -> Any:
    return rng.random(leaf.shape, np.float32) - np.float32(0.5)

  states = {
    part: names.torch_views(jax.tree.map(fill, tree))
    for part, tree in convert.templates(sd1.CONFIGS).items()
  }
  files = convert.ModelFiles(sd1.CONFIGS, states, None)
  convert.save_single_file(folder / FILE, files)


def _written(folder: pathlib.Path) -> pathlib.Path:
  """The file, which another process writes: this one's memory is measured."""
  path = folder / FILE
  if not path.is_file():
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
      raise ValueError(done.stderr.strip().splitlines()[-1])
  return path


def reading_ours(folder: pathlib.Path) -> Works:
  """Reads the file, makes parameters of it, and puts them on the device."""
  import jax

  from unlearning_jax import convert
  from unlearning_jax.convert import reader

  path = _written(folder)

  def read():
    files = convert.load(path, folder / "base", read=reader.read_lazily)
    params = convert.to_params(files)
    return jax.block_until_ready(jax.tree.map(jax.device_put, params))

  yield "reading", lambda: read


def reading_peer(folder: pathlib.Path) -> Works:
  """The same by diffusers, which may leave bytes in the file: each is read."""
  import diffusers
  import torch

  torch.set_num_threads(1)
  diffusers.utils.logging.disable_progress_bar()
  path = _written(folder)

  def read():
    pipe = diffusers.StableDiffusionPipeline.from_single_file(
      str(path), config=str(folder / "base"), torch_dtype=torch.float32,
      local_files_only=True, safety_checker=None,
    )  # fmt: skip
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
      for tensor in part.state_dict().values():
        # A number of each page of memory.
        tensor.flatten()[::1024].sum()
    return pipe

  yield "reading", lambda: read


def start(side: str) -> Works:
  """Imports what draws pictures."""
  ours = "from unlearning_jax import model, sampling"
  peer = "from diffusers import StableDiffusionPipeline"
  command = [sys.executable, "-c", ours if side == "ours" else peer]
  yield "start", lambda: lambda: subprocess.run(command, check=True)


if __name__ == "__main__":
  write_model(pathlib.Path(sys.argv[1]))
