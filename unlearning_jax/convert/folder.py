"""Diffusers folders, in and out."""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from unlearning_jax import durable
from unlearning_jax.convert.names import State, canonical, unwrapped
from unlearning_jax.convert.output import (
  MARK,
  SUMS,
  check_dtype,
  check_output,
  is_written,
  replacing,
  write_safetensors,
)
from unlearning_jax.convert.reader import (
  Reader,
  as_float32,
  read_edit,
  read_state_dict,
)
from unlearning_jax.record import seal

# Component -> (library, class, weights file) that torch's libraries expect.
COMPONENTS = {
  "text_encoder": ("transformers", "CLIPTextModel", "model"),
  "unet": ("diffusers", "UNet2DConditionModel", "diffusion_pytorch_model"),
  "vae": ("diffusers", "AutoencoderKL", "diffusion_pytorch_model"),
}
# What training code of diffusers and PEFT calls the file in its output folder.
_TRAINED = (
  "pytorch_lora_weights",
  "adapter_model",
  "pytorch_custom_diffusion_weights",
)
_PIPELINES = (
  "StableDiffusionPipeline",
  "StableDiffusionPipelineSafe",
  "StableDiffusionImg2ImgPipeline",
  "FlaxStableDiffusionPipeline",
  "FlaxStableDiffusionImg2ImgPipeline",
)
# Other entries that a model_index.json may have; a safety checker is not read.
_OTHERS = (
  "scheduler",
  "tokenizer",
  "safety_checker",
  "feature_extractor",
  "image_encoder",
  "requires_safety_checker",
)


@dataclasses.dataclass(frozen=True)
class ModelFiles:
  """A Stable Diffusion model as it lies on disk, under diffusers names.

  Attributes:
    configs: `config.json` of text_encoder, unet and vae, and the scheduler's
      `scheduler_config.json` with its `_class_name`.
    states: float32 torch state dicts of text_encoder, unet and vae, under
      canonical names (see `names.canonical`).
    tokenizer: folder with the tokenizer's files; None for a model from a single
      file, which has none.
    metadata: of an edited model: what was erased, how and from what. The
      header of every file written of it repeats that.
  """

  configs: dict[str, dict[str, Any]]
  states: dict[str, State]
  tokenizer: pathlib.Path | None
  metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)


def load_folder(
  path: str | os.PathLike,
  variant: str | None = None,
  read: Reader = read_state_dict,
) -> ModelFiles:
  """Reads a diffusers folder.

  Args:
    path: a folder with `model_index.json`.
    variant: which weights: "fp16" for `*.fp16.safetensors`; None for those
      without a variant or, if there are none, fp16.
    read: `reader.read_lazily` leaves the tensors in their files.

  Raises:
    ValueError: a file is missing, corrupt, not finite or of another kind of
      pipeline; the message names it.
    durable.DamagedError: the folder has sums, and a file is not what they say.
  """
  path = pathlib.Path(path)
  _check_sums(path, weights=True)
  configs = load_configs(path)
  states, metadata = {}, {}
  for component in COMPONENTS:
    file = find_weights(path / component, variant)
    state = unwrapped(read(file), str(file))
    state = canonical(state, str(file))
    states[component] = as_float32(state, str(file))
    metadata |= read_edit(file)
  return ModelFiles(configs, states, load_tokenizer(path), metadata)


def load_configs(path: pathlib.Path) -> dict[str, dict[str, Any]]:
  """Reads a folder's configs; arguments and errors as `load_folder`."""
  _check_sums(path, weights=False)
  file = path / MARK
  index = durable.read_json(file)
  pipeline = index.get("_class_name")
  if pipeline not in _PIPELINES:
    raise ValueError(
      f"{file}: _class_name={pipeline!r} is not supported; allowed: "
      f"{', '.join(_PIPELINES)}"
    )
  known = {*COMPONENTS, *_OTHERS}
  for name, entry in index.items():
    null = entry is None or entry == [None, None]
    if name not in known and not name.startswith("_") and not null:
      raise ValueError(f"{file}: component {name!r} is not supported")
  configs = {}
  for component, (_, expected, _) in COMPONENTS.items():
    entry = index.get(component)
    kind = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if str(kind).removeprefix("Flax") != expected:
      raise ValueError(f"{file}: {component} is {entry}; allowed: {expected}")
    configs[component] = durable.read_json(path / component / "config.json")
  scheduler = durable.read_json(path / "scheduler" / "scheduler_config.json")
  entry = index.get("scheduler") or [None, None]
  kind = scheduler.get("_class_name") or entry[1]
  if not isinstance(kind, str):
    raise ValueError(f"{file}: no scheduler class")
  configs["scheduler"] = scheduler | {"_class_name": kind.removeprefix("Flax")}
  return configs


def _check_sums(path: pathlib.Path, *, weights: bool):
  """Compares a folder that was written here with its sums.

  A folder of another tool has none. Neither the format of the weights nor JSON
  tells a flipped bit from a number.

  Args:
    path: the model folder.
    weights: compares the weights, or all other files.

  Raises:
    durable.DamagedError: a file is missing or differs; the message names it.
  """
  for name, was in seal.entries(path / SUMS).items():
    if name.endswith(".safetensors") != weights:
      continue
    if why := seal.differs(path / name, was):
      raise durable.DamagedError(
        f"{path / name} {why}; bring back a copy, or write the folder again; "
        f"if it was changed on purpose, delete {path / SUMS}"
      )


def load_tokenizer(path: pathlib.Path) -> pathlib.Path:
  """The tokenizer folder inside a model folder.

  Raises:
    ValueError: a file of it is missing.
  """
  folder = path / "tokenizer"
  if (folder / "tokenizer.json").is_file():
    return folder
  for name in ("vocab.json", "merges.txt"):
    if not (folder / name).is_file():
      raise ValueError(f"{folder / name}: no such file")
  return folder


def weight_names(variant: str | None) -> list[str]:
  """The possible names of a weights file, the preferred one first."""
  dot = f".{variant}" if variant else ""
  stems = ("diffusion_pytorch_model", "model", "pytorch_model")
  names = [
    name
    for kind in ("safetensors", "bin")
    for stem in stems
    for name in (f"{stem}{dot}.{kind}", f"{stem}.{kind}.index{dot}.json")
  ]
  if not variant:
    names += ["diffusion_flax_model.msgpack", "flax_model.msgpack"]
  return names


def find_weights(
  folder: pathlib.Path, variant: str | None = None
) -> pathlib.Path:
  """Picks the weights file in a folder of a component, or of a training.

  Args:
    variant: as in `load_folder`.

  Raises:
    ValueError: there is none.
  """
  # What was trained comes first: accelerate's state of the training lies beside
  # it as model.safetensors.
  names = [
    f"{stem}.{kind}" for stem in _TRAINED for kind in ("safetensors", "bin")
  ]
  for choice in [variant] if variant else [None, "fp16"]:
    names += weight_names(choice)
  for name in names:
    if (folder / name).is_file():
      return folder / name
  asked = f"of variant {variant!r} " if variant else ""
  present = sorted(p.name for p in folder.glob("*")) or "nothing"
  if any(folder.glob("*.distcp")):
    raise ValueError(
      f"{folder}: holds parts of a checkpoint of torch.distributed; join: "
      "python -m torch.distributed.checkpoint.format_utils dcp_to_torch "
      f"{folder} weights.pt"
    )
  steps = sorted(folder.glob("checkpoint-*"), key=lambda p: (len(p.name), p))
  raise ValueError(
    f"{folder}: no weights {asked}such as {weight_names(variant)[0]}; it "
    f"holds {present}" + (f"; its last step is {steps[-1]}" if steps else "")
  )


def save_folder(
  path: str | os.PathLike,
  model: ModelFiles,
  *,
  dtype: str = "float32",
  overwrite: bool = False,
  metadata: Mapping[str, str] | None = None,
) -> None:
  """Writes a folder that torch's `StableDiffusionPipeline` opens.

  The folder appears whole or not at all. It has no safety checker. Its sums
  let `load_folder` notice damage.

  Args:
    dtype: "float32", "float16" or "bfloat16".
    overwrite: whether a model folder at `path` may be replaced.
    metadata: more text for the header of every weights file.

  Raises:
    ValueError: the folder exists, the model has no tokenizer, or a weight is
      not finite in `dtype`.
  """
  check_dtype(dtype)
  path = check_output(path, overwrite, folder=True)
  if model.tokenizer is None:
    raise ValueError(
      f"{path}: a folder needs a tokenizer, and a single file has none; name "
      "a base folder to take it from"
    )
  with replacing(path) as partial:
    partial.mkdir()
    _write_json(partial / MARK, _model_index(model))
    for component, (_, kind, stem) in COMPONENTS.items():
      folder = partial / component
      config = dict(model.configs[component])
      if component == "text_encoder":
        # transformers loads in the dtype that it finds here.
        config.pop("dtype", None)
        config |= {"architectures": [kind], "torch_dtype": dtype}
      else:
        config["_class_name"] = kind
      _write_json(folder / "config.json", config)
      state = canonical(model.states[component], component)
      file = folder / f"{stem}.safetensors"
      header = {**model.metadata, **(metadata or {})}
      write_safetensors(file, state, dtype, header)
    _write_json(
      partial / "scheduler" / "scheduler_config.json",
      model.configs["scheduler"],
    )
    (partial / "tokenizer").mkdir()
    for file in sorted(model.tokenizer.iterdir()):
      if is_written(f"tokenizer/{file.name}") and file.is_file():
        shutil.copyfile(file, partial / "tokenizer" / file.name)
    (partial / SUMS).write_text(seal.made(partial, ["**/*"]), encoding="utf-8")


def _model_index(model: ModelFiles) -> dict[str, Any]:
  unet = model.configs["unet"]
  return {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": unet.get("_diffusers_version", "0.40.0"),
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", model.configs["scheduler"]["_class_name"]],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    **{name: [library, cls] for name, (library, cls, _) in COMPONENTS.items()},
  }


def _write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
  path.parent.mkdir(exist_ok=True)
  text = json.dumps(value, indent=2, sort_keys=True)
  path.write_text(text + "\n", encoding="utf-8")
