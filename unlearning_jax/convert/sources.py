"""Loads a model from whatever the user names."""

import dataclasses
import os
import pathlib

from unlearning_jax.convert import compvis, families, hub, sd1
from unlearning_jax.convert.adapters import is_lora, merge_lora
from unlearning_jax.convert.folder import (
  COMPONENTS,
  MARK,
  ModelFiles,
  find_weights,
  load_configs,
  load_folder,
  load_tokenizer,
)
from unlearning_jax.convert.names import State, canonical
from unlearning_jax.convert.parts import FINGERPRINT, fingerprint, overlay
from unlearning_jax.convert.reader import (
  as_float32,
  read_edit,
  read_metadata,
  read_state_dict,
)

_CONTEXT = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


def load(
  path: str | os.PathLike,
  base: ModelFiles | str | os.PathLike | None = None,
  *,
  variant: str | None = None,
  ema: bool | None = None,
) -> ModelFiles:
  """Reads a model.

  Args:
    path: a diffusers folder; a hub id `owner/name[@revision]`; a single file
      with the whole model. With `base` also a file or folder that replaces
      some of its tensors (a UNet, a text encoder, edited layers, a delta), or
      a LoRA file, which is added to them.
    base: the model that such a part belongs to, or its folder or hub id. A
      single file with the whole model takes its configs and tokenizer from
      it; without a base the configs are those of Stable Diffusion 1.x, and
      there is no tokenizer. A folder with a whole model does not read it.
    variant: as in `folder.load_folder`.
    ema: as in `compvis.from_compvis`.

  Raises:
    ValueError: the model cannot be read whole, or is of another family than
      Stable Diffusion 1.x and 2.x; the message names the file.
  """
  path = _resolve(path, variant)
  if path.is_dir():
    families.check_folder(path)
  # A folder with a unet/ but without an index is a damaged whole model.
  if (path / MARK).is_file() or (path / "unet").is_dir():
    if ema is not None:
      raise ValueError(f"{path}: ema={ema} is a choice in single files only")
    return load_folder(path, variant)
  file = find_weights(path, variant) if path.is_dir() else path
  state, source = read_state_dict(file), str(file)
  families.check_names(state, source)
  if _is_whole(state):
    return _from_single_file(state, source, base, variant, ema)
  if base is None:
    raise ValueError(
      f"{source}: holds part of a model ({len(state)} tensors, the first is "
      f"{next(iter(state))!r}); name its base model, by --base or base="
    )
  if not isinstance(base, ModelFiles):
    base = load_folder(_resolve(base, variant), variant)
  made_for = read_metadata(file).get(FINGERPRINT)
  if made_for is not None and made_for != fingerprint(base.states):
    raise ValueError(
      f"{source}: is a delta over another base than the one given "
      f"(fingerprint {made_for[:12]}...)"
    )
  if is_lora(state) and ema is None:
    model = merge_lora(base, file, state)
  else:
    model = overlay(base, state, ema=ema, source=source)
  return dataclasses.replace(model, metadata=read_edit(file) or base.metadata)


def is_delta(path: str | os.PathLike) -> bool:
  """Whether a file, or the file in a folder or hub id, is a delta or a LoRA."""
  path = _resolve(path, None)
  file = find_weights(path) if path.is_dir() else path
  return FINGERPRINT in read_metadata(file) or is_lora(read_state_dict(file))


def _resolve(path: str | os.PathLike, variant: str | None) -> pathlib.Path:
  name = os.fspath(path)
  if os.path.exists(name):
    return pathlib.Path(name)
  if hub.is_hub_id(name):
    return hub.fetch(name, variant)
  raise ValueError(f"{name}: no such file or folder")


def _is_whole(state: State) -> bool:
  """Whether a file in the single-file layout has all three components."""
  return all(
    any(key.startswith(prefixes) for key in state)
    for prefixes in (
      compvis.UNET + "input_blocks.",
      compvis.VAE,
      (compvis.CLIP, compvis.OPEN_CLIP),
    )
  )


def _from_single_file(
  state: State,
  source: str,
  base: ModelFiles | str | os.PathLike | None,
  variant: str | None,
  ema: bool | None,
) -> ModelFiles:
  if isinstance(base, ModelFiles):
    configs, tokenizer = base.configs, base.tokenizer
  elif base is not None:
    folder = _resolve(base, variant)
    configs, tokenizer = load_configs(folder), load_tokenizer(folder)
  else:
    configs, tokenizer = sd1.CONFIGS, None
    width = configs["unet"]["cross_attention_dim"]
    context = state.get(compvis.UNET + _CONTEXT)
    if context is None or context.shape[-1] != width:
      raise ValueError(
        f"{source}: is not a Stable Diffusion 1.x model and brings no "
        "configs; name a base folder to take them from"
      )
  depths = compvis.Depths.from_configs(configs)
  parts = compvis.from_compvis(state, depths, ema=ema, source=source)
  states = {
    component: as_float32(canonical(parts[component], source), source)
    for component in COMPONENTS
  }
  return ModelFiles(configs, states, tokenizer, read_edit(source))
