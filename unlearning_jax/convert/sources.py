"""Loads a model from whatever the user names."""

import dataclasses
import os
import pathlib
import warnings

import numpy as np

from unlearning_jax.convert import compvis, families, hub, sd1
from unlearning_jax.convert.adapters import is_lora, merge_lora
from unlearning_jax.convert.families import FINGERPRINT
from unlearning_jax.convert.folder import (
  COMPONENTS,
  MARK,
  ModelFiles,
  find_weights,
  load_configs,
  load_folder,
  load_tokenizer,
)
from unlearning_jax.convert.names import State, canonical, unwrapped
from unlearning_jax.convert.parts import fingerprint, overlay
from unlearning_jax.convert.reader import (
  Reader,
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
  read: Reader = read_state_dict,
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
    read: `reader.read_lazily` leaves the tensors in their files.

  Raises:
    ValueError: the model cannot be read whole, or is of another family than
      Stable Diffusion 1.x and 2.x; the message names the file.
  """
  path = _resolve(path, variant)
  if path.is_dir():
    families.check_folder(path)
  if base is not None and (training := _trained_parts(path)):
    model = _as_files(base, variant, read)
    for file in training:
      model = _over(model, file, None, read(file))
    return model
  # A folder with a unet/ but without an index is a damaged whole model.
  if (path / MARK).is_file() or (path / "unet").is_dir():
    if ema is not None:
      raise ValueError(f"{path}: ema={ema} is a choice in single files only")
    return load_folder(path, variant, read)
  file = find_weights(path, variant) if path.is_dir() else path
  return _of_file(file, base, variant, ema, read)


def _trained_parts(path: pathlib.Path) -> list[pathlib.Path]:
  """The weights in a training's checkpoint, which has no index.

  Raises:
    ValueError: it has trained and averaged ones.
  """
  if not path.is_dir() or (path / MARK).is_file():
    return []
  averaged = [f"{part}_ema" for part in COMPONENTS]
  found = [part for part in COMPONENTS if (path / part).is_dir()]
  for name in averaged:
    if found and (path / name).is_dir():
      raise ValueError(
        f"{path}: holds trained and averaged weights; name the folder of the "
        f"ones to read: {path / name.removesuffix('_ema')} or {path / name}"
      )
  return [find_weights(path / part) for part in found]


def _as_files(
  base: ModelFiles | str | os.PathLike, variant: str | None, read: Reader
) -> ModelFiles:
  if isinstance(base, ModelFiles):
    return base
  return load_folder(_resolve(base, variant), variant, read)


def _of_file(
  file: pathlib.Path,
  base: ModelFiles | str | os.PathLike | None,
  variant: str | None,
  ema: bool | None,
  read: Reader,
) -> ModelFiles:
  state, source = read(file), str(file)
  kind = families.recognize(state, read_metadata(file))
  families.check(kind, source)
  state = unwrapped(state, source)
  if _is_whole(state):
    with families.explaining(source, kind):
      return _from_single_file(state, source, base, variant, ema, read)
  if base is None:
    raise ValueError(
      f"{source}: holds part of a model ({kind.text}, {len(state)} tensors); "
      "name its base model, by --base or base="
    )
  return _over(_as_files(base, variant, read), file, ema, state)


def _over(
  base: ModelFiles, file: pathlib.Path, ema: bool | None, state: State
) -> ModelFiles:
  """The base with what a file holds; warns if the file changes nothing."""
  source = str(file)
  metadata = read_metadata(file)
  kind = families.recognize(state, metadata)
  families.check(kind, source)
  made_for = metadata.get(FINGERPRINT)
  if made_for is not None and made_for != fingerprint(base.states):
    raise ValueError(
      f"{source}: is a delta over another base than the one given "
      f"(fingerprint {made_for[:12]}...)"
    )
  with families.explaining(source, kind):
    if is_lora(state) and ema is None:
      model = merge_lora(base, file, state)
    else:
      model = overlay(base, state, ema=ema, source=source)
  _warn_of_no_change(source, model, base, ema)
  return dataclasses.replace(model, metadata=read_edit(file) or base.metadata)


def _warn_of_no_change(
  source: str, model: ModelFiles, base: ModelFiles, ema: bool | None
):
  """Warns where an edit would be none: the weights are the base's."""
  for part, old in base.states.items():
    new = model.states[part]
    if new is not old and not all(
      new[name] is value or np.array_equal(new[name], value)
      for name, value in old.items()
    ):
      return
  warnings.warn(
    f"{source}: no tensor differs from the base's, so nothing is edited"
    + (
      "; these are its averaged weights, and editing code changes the trained "
      "ones: read those with --noema (ema=False)"
      if ema
      else ""
    ),
    stacklevel=2,
  )


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
  read: Reader,
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
  compvis.check_marks(state, configs["scheduler"], source)
  depths = compvis.Depths.from_configs(configs)
  parts = compvis.from_compvis(state, depths, ema=ema, source=source)
  states = {
    component: as_float32(canonical(parts[component], source), source)
    for component in COMPONENTS
  }
  if ema and base is not None:
    old = {"unet": _as_files(base, variant, read).states["unet"]}
    _warn_of_no_change(
      source, ModelFiles({}, states, None), ModelFiles({}, old, None), ema
    )
  return ModelFiles(configs, states, tokenizer, read_edit(source))
