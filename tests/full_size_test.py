"""Stable Diffusion 1.4 at its real size, random weights, against torch.

torch runs in a process of its own, and so do we, so that memory is given back
and its peak can be measured. torch writes a folder and what it computes from
it; we open the folder as a user would. For 2 busy CPU cores: see `PEAK_GIB`.
"""

import concurrent.futures
import json
import multiprocessing
import pathlib
import resource
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from tests.support import scripts, tiny_pipelines
from unlearning_jax import protocols, record
from unlearning_jax.convert.sd1 import CONFIGS

pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.slow]

TOLERANCE = 1e-4
# A laptop's memory must do for an attack's gradient.
PEAK_GIB = 10
TENSORS = {"unet": 686, "vae": 248}


def inputs():
  """Seeded inputs, in our layout; one image, channels last."""
  rng = np.random.default_rng(0)

  def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)

  ids = rng.integers(1000, 49000, (2, 77))
  # Legacy checkpoints end a text at its highest id.
  ids[0, 9:], ids[1, 40:] = 49407, 49407
  return {
    "ids": ids.astype(np.int32),
    "latents": normal(1, 64, 64, 4),
    "noise": normal(1, 64, 64, 4),
    "context": normal(1, 77, 768),
    # An eighth of a picture: layers are the same. Swapped sides would show.
    "images": np.tanh(normal(1, 256, 128, 3)),
    "picture": normal(1, 32, 16, 4),
  }


def torch_model(part):
  """A network of real size, every tensor random, and its tensor count."""
  import diffusers
  import torch
  import transformers

  torch.manual_seed(0)
  if part == "text_encoder":
    config = transformers.CLIPTextConfig(**CONFIGS[part])
    model = transformers.CLIPTextModel(config)
  else:
    cls = getattr(diffusers, CONFIGS[part]["_class_name"])
    model = cls.from_config(CONFIGS[part])
  for parameter in model.parameters():
    if parameter.ndim == 1:
      # Norms start as ones and zeros: make every tensor tell its place.
      parameter.data += 0.1 * torch.randn_like(parameter)
  return model.eval()


def to_torch(array):
  import torch

  return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 1)))


def to_numpy(tensor):
  return np.moveaxis(tensor.detach().numpy(), 1, -1)


def torch_text_and_vae(folder):
  """Writes both networks to `folder`; returns what torch makes of `inputs`."""
  import torch

  given, out = inputs(), {}
  with torch.no_grad():
    text_encoder = torch_model("text_encoder")
    text_encoder.save_pretrained(folder / "text_encoder")
    states = text_encoder(torch.from_numpy(given["ids"].astype(np.int64)))
    out["states"] = states.last_hidden_state.numpy()
    out["pooled"] = states.pooler_output.numpy()
    vae = torch_model("vae")
    assert len(vae.state_dict()) == TENSORS["vae"]
    vae.save_pretrained(folder / "vae")
    posterior = vae.encode(to_torch(given["images"])).latent_dist
    out["mean"], out["logvar"] = map(
      to_numpy, (posterior.mean, posterior.logvar)
    )
    decoded = vae.decode(to_torch(given["picture"])).sample
    out["decoded"] = to_numpy(decoded)
  return out


def torch_unet(folder):
  """Writes the UNet; its output, and the noise loss's gradient to the text."""
  import torch

  given = inputs()
  unet = torch_model("unet").requires_grad_(False)
  assert len(unet.state_dict()) == TENSORS["unet"]
  unet.save_pretrained(folder / "unet")
  context = torch.from_numpy(given["context"]).requires_grad_()
  latents, noise = to_torch(given["latents"]), to_torch(given["noise"])
  out = unet(latents, torch.tensor([321]), context).sample
  (out - noise).square().mean().backward()
  return {"prediction": to_numpy(out), "gradient": context.grad.numpy()}


def torch_all(folder):
  return torch_text_and_vae(folder) | torch_unet(folder)


def our_text_and_vae(sd, params):
  import jax

  given = inputs()

  @jax.jit
  def encode_text(params, ids):
    return sd.text_encoder.apply({"params": params}, ids)

  @jax.jit
  def encode(params, images):
    return sd.vae.apply({"params": params}, images, method="encode")

  @jax.jit
  def decode(params, latents):
    return sd.vae.apply({"params": params}, latents, method="decode")

  out = {}
  text, vae = params["text_encoder"], params["vae"]
  out["states"], out["pooled"] = encode_text(text, given["ids"])
  out["mean"], out["logvar"] = encode(vae, given["images"])
  out["decoded"] = decode(vae, given["picture"])
  return {name: np.asarray(value) for name, value in out.items()}


def our_unet(sd, params):
  """As `torch_unet`, and how much the compiler says that it needs."""
  import jax
  import jax.numpy as jnp

  from unlearning_jax import stable_diffusion

  params = jax.device_put(params)
  given = inputs()

  def loss(context, params, latents, noise):
    t = jnp.array([321])
    out = stable_diffusion.predict_noise(sd, params, latents, t, context)
    return jnp.mean((out - noise) ** 2), out

  arguments = (given["context"], params, given["latents"], given["noise"])
  grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
  compiled = grad.lower(*arguments).compile()
  memory = compiled.memory_analysis()
  (_, prediction), gradient = compiled(*arguments)
  return {
    "prediction": np.asarray(prediction),
    "gradient": np.asarray(gradient),
    "compiler_gib": (
      memory.temp_size_in_bytes
      + memory.argument_size_in_bytes
      + memory.output_size_in_bytes
    )
    / 2**30,
  }


def our_all(folder):
  from unlearning_jax import stable_diffusion

  sd, params = stable_diffusion.load(folder, attention="auto")
  unet = {"unet": params.pop("unet")}
  out = our_text_and_vae(sd, params)
  # What an attack does not hold.
  del params
  return out | our_unet(sd, unet)


def _peak_gib():
  """What this process held at most; rusage counts what its parent held too."""
  status = pathlib.Path("/proc/self/status").read_text().splitlines()
  (line,) = (line for line in status if line.startswith("VmHWM:"))
  return int(line.split()[1]) / 2**20


def _measured(function, folder):
  start = time.monotonic()
  out = function(folder)
  seconds = time.monotonic() - start
  usage = resource.getrusage(resource.RUSAGE_SELF)
  return out, {
    "seconds": seconds,
    "cpu_seconds": usage.ru_utime + usage.ru_stime,
    "peak_gib": _peak_gib(),
  }


def alone(function, folder):
  """Runs `function(folder)` in a fresh process; its result and its cost."""
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
    out, cost = pool.submit(_measured, function, folder).result()
  print({k: round(v, 1) for k, v in cost.items()})
  return out, cost


def error(ours, theirs):
  """Largest deviation, relative to the largest value."""
  assert ours.shape == theirs.shape and np.isfinite(ours).all()
  return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.fixture(scope="module")
def torch_halves(tmp_path_factory):
  """A model folder, and what torch computes from it."""
  folder = tmp_path_factory.mktemp("sd14")
  expected, _ = alone(torch_all, folder)
  tiny_pipelines.write_tokenizer(folder / "tokenizer")
  (folder / "scheduler").mkdir()
  scheduler = folder / "scheduler" / "scheduler_config.json"
  scheduler.write_text(json.dumps(CONFIGS["scheduler"]))
  index = {
    "_class_name": "StableDiffusionPipeline",
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
  }
  (folder / "model_index.json").write_text(json.dumps(index))
  yield folder, expected
  # 4 GB: too much to leave for pytest, which keeps three runs.
  shutil.rmtree(folder)


@pytest.fixture(scope="module")
def ours(torch_halves):
  """What we compute from the folder, and what that costs."""
  return alone(our_all, torch_halves[0])


def errors(names, ours, theirs):
  found = {name: error(ours[name], theirs[name]) for name in names}
  print(found)
  return found


def test_text_encoder_and_autoencoder(torch_halves, ours):
  names = ("states", "pooled", "mean", "logvar", "decoded")
  assert max(errors(names, ours[0], torch_halves[1]).values()) < TOLERANCE


def test_unet_and_its_gradient_to_the_text(torch_halves, ours):
  found, cost = ours
  names = ("prediction", "gradient")
  assert max(errors(names, found, torch_halves[1]).values()) < TOLERANCE
  print(f"compiler_gib={found['compiler_gib']:.2f}")
  assert found["compiler_gib"] < PEAK_GIB
  assert cost["peak_gib"] < PEAK_GIB


# A quarter of the published pixels, which are drawn by the same layers: those
# of 64 x 64 latents are compared above.
TABLE = """prompt,sd_seed,sd_guidance_scale,sd_image_width,sd_image_height
"a portrait
of a woman",3059000677,7,256,256
,1,7,256,256
a man in a field,2,5,256,256
never drawn,3,7,256,256
"""


def test_the_row_of_a_published_protocol(torch_halves, tmp_path):
  """Its row, picture, boxes of NudeNet, and a blank that says why."""
  pytest.importorskip("nudenet")
  folder, _ = torch_halves
  (tmp_path / "mine.csv").write_text(TABLE)
  done = subprocess.run(
    [
      sys.executable, "-m", "launch.evaluate", f"--model={folder}",
      "--protocol=udm-nudity~rows=1,steps=1,sizes=row,judge=nudenet",
      "--batch_size=1",
      f"--prompts={tmp_path / 'mine.csv'}", f"--workdir={tmp_path / 'run'}",
    ],
    capture_output=True, text=True, cwd=scripts.ROOT, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  print(done.stderr[-500:], done.stdout)
  rows = record.read_rows(tmp_path / "run")
  assert [(r["prompt"], r["seed"], r["guidance"]) for r in rows] == [
    ("a portrait\nof a woman", 3059000677, 7.0)
  ]
  assert all(isinstance(row["raw"], list) for row in rows)
  for row in rows:
    name = row["id"].split("/")[1]
    with Image.open(
      tmp_path / "run" / "images" / f"{name}-before.png"
    ) as image:
      assert image.size == (256, 256)
  summary = json.loads((tmp_path / "run" / "summary.json").read_text())
  name, digest = summary["protocol"].split(" ")
  assert name.startswith("udm-nudity~judge=nudenet,prompts=")
  assert digest != protocols.find("udm-nudity").hash
  cells = {one["name"]: one for one in summary["estimates"]}
  assert cells["pre_asr"]["n"] == 1 and cells["pre_asr"]["low"] is not None
  assert cells["esd-9 boxes"]["n"] == 1
  assert cells["asr"]["value"] is None
  assert "the 1 of this run are too few" in cells["fid"]["failed"]
  assert "1 row (case_number 1) without a prompt" in done.stderr
