"""What each stage trains: networks, data, loss, and where the result goes.

The stages run in the order `vae`, `clip` (the text encoder), `unet`. Each reads
what earlier ones wrote into the model folder.
"""

import functools
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, UInt8
from safetensors.numpy import load_file, save_file

from unlearning_jax import models
from unlearning_jax.convert import names
from unlearning_jax.finetune import Loss
from unlearning_jax.schedules import Schedule
from unlearning_jax.shapes import training
from unlearning_jax.shapes.tokenizer import load_tokenizer, train_tokenizer
from unlearning_jax.shapes.tower import Projections
from unlearning_jax.stable_diffusion import Params

_WEIGHTS = {
  "text_encoder": "model.safetensors",
  "clip": "model.safetensors",
  "unet": "diffusion_pytorch_model.safetensors",
  "vae": "diffusion_pytorch_model.safetensors",
}


class Task(NamedTuple):
  """A stage of training, ready for `finetune.train`.

  Attributes:
    init: makes parameters from a key.
    loss: a `finetune.Loss`.
    frozen: constant arrays that the loss reads.
    arrays: the training data by name, each led by the rows.
    finish: writes the trained parameters into the model folder.
  """

  init: Callable[[PRNGKeyArray], Any]
  loss: Loss
  frozen: Any
  arrays: Mapping[str, np.ndarray]
  finish: Callable[[Any], None]


def vae(config: Any, data: Mapping[str, Any], folder: pathlib.Path) -> Task:
  """The autoencoder, on images alone."""
  net = models.AutoencoderKL.from_config(config.vae)

  def finish(params: Params):
    mean, _ = _moments(net, params, data["images"][:4096])
    # Stable Diffusion's convention: scaled latents have unit variance.
    scaled = dict(config.vae, scaling_factor=float(1 / mean.std()))
    _write(folder, "vae", scaled, params)

  image = jnp.zeros((1, 32, 32, 3))
  return Task(
    init=lambda key: net.init(key, image)["params"],
    loss=functools.partial(training.vae_loss, net, **config.loss),
    frozen=(),
    arrays={"images": data["images"]},
    finish=finish,
  )


def clip(config: Any, data: Mapping[str, Any], folder: pathlib.Path) -> Task:
  """Tokenizer, text encoder and image tower, with a contrastive loss."""
  train_tokenizer(folder / "tokenizer", config.tokenizer_captions, config.seed)
  ids = tokenize(folder, list(data["captions"]))
  text_config = dict(
    config.text_encoder,
    vocab_size=int(ids.max()) + 1,
    max_position_embeddings=ids.shape[1],
    bos_token_id=int(ids[0, 0]),
    eos_token_id=int(ids[0, -1]),
    pad_token_id=int(ids[0, -1]),
  )
  text = models.ClipTextModel.from_config(text_config)
  towers = Projections(**config.tower)

  def init(key: PRNGKeyArray):
    keys = jax.random.split(key)
    image, width = jnp.zeros((1, 32, 32, 3)), text_config["hidden_size"]
    pooled = jnp.ones((1, width))
    fresh = text.init(keys[0], jnp.asarray(ids[:1]))["params"]
    return {
      "text_encoder": _start(config.init, "text_encoder", fresh),
      "clip": towers.init(keys[1], image, pooled)["params"],
    }

  def finish(params: Params):
    _write(folder, "text_encoder", text_config, params["text_encoder"])
    _write(folder, "clip", dict(config.tower), params["clip"])

  return Task(
    init=init,
    loss=functools.partial(training.clip_loss, text, towers),
    frozen=(),
    arrays={"images": data["images"], "ids": ids},
    finish=finish,
  )


def unet(config: Any, data: Mapping[str, Any], folder: pathlib.Path) -> Task:
  """The noise predictor, on cached latents and text states."""
  net = models.UNet2DCondition.from_config(config.unet)
  schedule = Schedule.from_config(config.scheduler)
  vae_config, vae_params = _read(folder, "vae", models.AutoencoderKL)
  encoder = models.AutoencoderKL.from_config(vae_config)
  mean, std = _moments(encoder, vae_params, data["images"])
  scale = vae_config["scaling_factor"]
  text_config, text_params = _read(folder, "text_encoder", models.ClipTextModel)
  text = models.ClipTextModel.from_config(text_config)
  states: Any = functools.partial(_states, text, text_params)
  context = states(tokenize(folder, list(data["captions"])))

  def finish(params: Params):
    _write(folder, "unet", dict(config.unet), params)
    _write_pipeline(folder, dict(config.scheduler))

  example = jnp.zeros((1, *mean.shape[1:])), jnp.zeros((1,), jnp.int32)
  example += (jnp.asarray(context[:1], jnp.float32),)
  return Task(
    init=lambda key: _start(
      config.init, "unet", net.init(key, *example)["params"]
    ),
    loss=functools.partial(training.unet_loss, net, schedule, **config.loss),
    frozen=states(tokenize(folder, [""])).astype(np.float32),
    arrays={
      "mean": (mean * scale).astype(np.float16),
      "std": (std * scale).astype(np.float16),
      "context": context,
    },
    finish=finish,
  )


def _start(init: str, part: str, fresh: Mapping[str, Any]) -> Mapping[str, Any]:
  """A part's first parameters: `fresh`, or those of the model folder `init`."""
  if not init:
    return fresh
  file = pathlib.Path(init) / part / _WEIGHTS[part]
  return names.to_flax(load_file(file), fresh, str(file))


def tokenize(folder: str | os.PathLike[str], prompts: list[str]) -> np.ndarray:
  """Token ids (b, l) int32 of the folder's tokenizer, padded to its length."""
  tokenizer = load_tokenizer(pathlib.Path(folder) / "tokenizer")
  out = tokenizer(prompts, padding="max_length", return_tensors="np")
  return np.asarray(out["input_ids"], np.int32)


def _moments(
  net: models.AutoencoderKL, params: Params, images: UInt8[Array, "n"]
):
  """Mean and standard deviation of the posterior, unscaled."""

  @jax.jit
  def encode(batch: Array):
    scaled = batch.astype(jnp.float32) / 127.5 - 1
    mean, logvar = models.apply(net, params, scaled, method="encode")
    return mean, jnp.exp(logvar / 2)

  return tuple(
    np.concatenate(part) for part in zip(*_map(encode, images), strict=True)
  )


def _states(
  net: models.ClipTextModel, params: Params, ids: np.ndarray
) -> np.ndarray:
  encode = jax.jit(lambda batch: models.apply(net, params, batch)[0])
  return np.concatenate([s.astype(np.float16) for s in _map(encode, ids)])


def _map(function: Callable, rows: Array | np.ndarray, size: int = 500):
  for start in range(0, len(rows), size):
    yield jax.tree.map(np.asarray, function(rows[start : start + size]))


def _write(folder: pathlib.Path, part: str, config: Mapping, params: Params):
  path = folder / part
  path.mkdir(parents=True, exist_ok=True)
  state = {
    name: np.asarray(value, order="C")
    for name, value in names.torch_views(params).items()
  }
  save_file(state, path / _WEIGHTS[part], metadata={"format": "pt"})
  plain = {k: list(v) if isinstance(v, tuple) else v for k, v in config.items()}
  (path / "config.json").write_text(json.dumps(plain, indent=2) + "\n")


def _read(folder: pathlib.Path, part: str, model: Any) -> tuple[dict, Params]:
  config = json.loads((folder / part / "config.json").read_text())
  net = model.from_config(config)
  if part == "vae":
    example = (jnp.zeros((1, 32, 32, 3)),)
  else:
    example = (jnp.zeros((1, config["max_position_embeddings"]), jnp.int32),)
  template = models.parameter_shapes(net, *example)
  state = load_file(folder / part / _WEIGHTS[part])
  return config, names.to_flax(state, template, part)


def _write_pipeline(folder: pathlib.Path, scheduler: dict):
  index = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", scheduler["_class_name"]],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
  }
  (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
  (folder / "scheduler").mkdir(exist_ok=True)
  path = folder / "scheduler" / "scheduler_config.json"
  path.write_text(json.dumps(scheduler, indent=2) + "\n")
