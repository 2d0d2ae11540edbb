"""Weights files of many tools and layouts, small, and what reads them."""

import functools
import json
import pathlib
import pickle
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import fuzz_runs
import jax
import numpy as np
from flax import serialization

from unlearning_jax import convert, durable
from unlearning_jax.convert import arrays, inspection, reader, template
from unlearning_jax.convert.torch_files import write_torch

NETWORKS = {
  "text_encoder": {
    "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1,
    "vocab_size": 64, "max_position_embeddings": 8, "intermediate_size": 32,
    "eos_token_id": 63, "bos_token_id": 62,
  },
  "unet": {
    "block_out_channels": [16], "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"], "attention_head_dim": 2,
    "layers_per_block": 1, "cross_attention_dim": 16, "norm_num_groups": 8,
    "sample_size": 8,
  },
  "vae": {
    "block_out_channels": [8], "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"], "norm_num_groups": 4,
  },
  "scheduler": {
    "_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "skip_prk_steps": True, "steps_offset": 1,
    "num_train_timesteps": 1000,
  },
}  # fmt: skip


class Loader(NamedTuple):
  """A reader of files, and files for it.

  Attributes:
    name: what it reads.
    make: writes whole files into a folder.
    read: reads what stands in such a folder.
    named: whether its errors name a file; a text that was typed has none.
  """

  name: str
  make: Callable[[pathlib.Path], Any]
  read: Callable[[pathlib.Path], Any]
  named: bool = True


@functools.cache
def model() -> convert.ModelFiles:
  """A whole model of random weights, in files of some hundred KB."""
  draw = np.random.default_rng(0)
  states = {
    part: {
      name: draw.normal(0, 0.2, value.shape).astype(np.float32)
      for name, value in convert.to_torch(
        jax.tree.map(lambda x: np.zeros(x.shape, np.float32), tree)
      ).items()
    }
    for part, tree in _templates().items()
  }
  return convert.ModelFiles(NETWORKS, states, _tokenizer())


@functools.cache
def _tokenizer() -> pathlib.Path:
  """The smallest tokenizer that transformers opens."""
  folder = pathlib.Path(fuzz_runs.scratch(), "tokenizer")
  folder.mkdir()
  letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
  tokens = [*letters, *(c + "</w>" for c in letters), "ab"]
  tokens += ["<|startoftext|>", "<|endoftext|>"]
  vocabulary = {token: i for i, token in enumerate(tokens)}
  (folder / "vocab.json").write_text(json.dumps(vocabulary))
  (folder / "merges.txt").write_text("#version: 0.2\na b\n")
  said = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 8}
  (folder / "tokenizer_config.json").write_text(json.dumps(said))
  return folder


@functools.cache
def params() -> dict[str, Any]:
  """The model's parameters, in order as flax has them."""
  return convert.to_params(model())


@functools.cache
def _templates() -> dict[str, Any]:
  return template.templates(NETWORKS)


def laid_out(files: convert.ModelFiles):
  """As `to_params`, without asking the networks for their shapes again."""
  for part, tree in _templates().items():
    convert.to_flax(files.states[part], tree, part)


def _unet() -> dict[str, np.ndarray]:
  """A part of the UNet that is enough to know the file by."""
  whole = model().states["unet"]
  return {k: v for k, v in whole.items() if "attn2" in k or "conv_in" in k}


def _over(name: str) -> Callable[[pathlib.Path], Any]:
  """Reads a file as a user would: asked what it is, and over its base."""

  def read(root: pathlib.Path):
    inspection.inspect(root / name)
    with durable.explaining(root):
      laid_out(convert.load(root / name, model()))

  return read


def loaders() -> Iterator[Loader]:
  """Readers of weights, each with whole files."""

  def save(name: str, write: Callable[[pathlib.Path], Any]) -> Loader:
    return Loader(name, lambda root: write(root / name), _over(name))

  yield save(
    "part.safetensors", lambda p: convert.save_part(p, model(), "unet")
  )
  yield save("part.pt", lambda p: write_torch(p, _unet(), "float32"))
  yield save("half.bin", lambda p: write_torch(p, _unet(), "bfloat16"))
  yield save(
    "single.safetensors", lambda p: convert.save_single_file(p, model())
  )
  yield save("single.ckpt", lambda p: convert.save_single_file(p, model()))
  yield save("delta.safetensors", _write_delta)
  yield save("training.ckpt", _write_training)
  yield save("old.pt", lambda p: _torch_save(p, _unet(), old=True))
  yield save("flax.msgpack", _write_flax)
  yield Loader("shards", _write_shards, _over("unet.safetensors.index.json"))
  yield Loader("lazily", _write_shards, _lazily)
  yield Loader("q16.p", _write_array, lambda r: arrays.read_array(r / "q16.p"))
  for name, make in _adapters().items():
    file = f"{name}.safetensors"
    yield Loader(
      name, functools.partial(_write_adapter, make, file), _over(file)
    )
  yield Loader("peft", _write_peft, _over("adapter_model.safetensors"))
  yield save("word.pt", lambda p: _torch_save(p, {
    "string_to_token": {"*": 265}, "string_to_param": {"*": np.ones((1, 768))},
    "name": "a word", "step": 3,
  }))  # fmt: skip


def _write_delta(path: pathlib.Path):
  old, states = model(), {k: dict(v) for k, v in model().states.items()}
  name = next(k for k in states["unet"] if "attn2.to_k" in k)
  states["unet"][name] = states["unet"][name] + 1
  new = convert.ModelFiles(old.configs, states, old.tokenizer)
  convert.save_delta(path, old, new)


def _torch_save(path: pathlib.Path, tree: Any, old: bool = False):
  import torch

  def as_torch(value: Any) -> Any:
    if isinstance(value, dict):
      return {key: as_torch(one) for key, one in value.items()}
    return torch.tensor(value) if isinstance(value, np.ndarray) else value

  torch.save(as_torch(tree), path, _use_new_zipfile_serialization=not old)


def _write_training(path: pathlib.Path):
  states = {0: {"exp_avg": np.ones(3), "step": 7}}
  _torch_save(path, {
    "state_dict": _unet(), "epoch": 3, "hyper_parameters": {"lr": 1e-5},
    "optimizer_states": [{"state": states, "param_groups": [{"lr": 0.1}]}],
  })  # fmt: skip


def _write_flax(path: pathlib.Path):
  path.write_bytes(serialization.msgpack_serialize(params()["unet"]))


def _write_shards(root: pathlib.Path):
  names, index = sorted(_unet()), {}
  for i, part in enumerate((names[::2], names[1::2])):
    file = f"unet-{i}.safetensors"
    convert.parts.write_safetensors(
      root / file, {name: _unet()[name] for name in part}, "float16"
    )
    index |= dict.fromkeys(part, file)
  (root / "unet.safetensors.index.json").write_text(
    json.dumps({"metadata": {"total_size": 1}, "weight_map": index})
  )


def _lazily(root: pathlib.Path):
  state = reader.read_lazily(root / "unet.safetensors.index.json")
  for value in reader.as_float32(state, str(root)).values():
    np.asarray(value)


def _write_array(root: pathlib.Path):
  with (root / "q16.p").open("wb") as file:
    pickle.dump(np.ones((2, 9), np.float32), file, protocol=4)


def _write_adapter(make: Callable, file: str, root: pathlib.Path):
  convert.parts.write_safetensors(root / file, make(), "float32")


def _adapters() -> dict[str, Callable[[], dict[str, np.ndarray]]]:
  """Adapters of the first text projection, under the names of their tools."""
  name = next(k for k in model().states["unet"] if "attn2.to_k" in k)
  module, shape = (
    name.removesuffix(".weight"),
    model().states["unet"][name].shape,
  )
  flat = "lora_unet_" + module.replace(".", "_")
  down, up = np.ones((2, shape[1])), np.ones((shape[0], 2))
  alpha = {f"{flat}.alpha": np.array(2.0)}
  lora = {f"{flat}.lora_down.weight": down, f"{flat}.lora_up.weight": up}
  return {
    "kohya": lambda: lora | alpha,
    "dora": lambda: lora | alpha | {
      f"{flat}.dora_scale": np.ones((shape[0], 1))
    },
    "loha": lambda: alpha | {
      f"{flat}.hada_w{i}_{side}": value
      for i in "12" for side, value in (("a", up), ("b", down))
    },
    "lokr": lambda: alpha | {
      f"{flat}.lokr_w1": np.ones((2, 2)),
      f"{flat}.lokr_w2": np.ones((shape[0] // 2, shape[1] // 2)),
    },
    "ia3": lambda: {
      f"{flat}.weight": np.ones(shape[0]), f"{flat}.on_input": np.array(0.0)
    },
    "diffusers": lambda: {
      f"unet.{module}.lora_A.weight": down, f"unet.{module}.lora_B.weight": up
    },
  }  # fmt: skip


def _write_peft(root: pathlib.Path):
  made = _adapters()["diffusers"]()
  renamed = {
    key.replace("unet.", "base_model.model."): v for key, v in made.items()
  }
  _write_adapter(lambda: renamed, "adapter_model.safetensors", root)
  (root / "adapter_config.json").write_text(json.dumps({
    "peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_rslora": False,
    "alpha_pattern": {"to_k": 8}, "rank_pattern": {}, "use_dora": False,
  }))  # fmt: skip
