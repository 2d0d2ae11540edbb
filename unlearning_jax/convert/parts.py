"""Lays files that hold part of a model over a base; writes such files."""

import dataclasses
import hashlib
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging
from flax import traverse_util

from unlearning_jax import memory
from unlearning_jax.convert import compvis, names, originals
from unlearning_jax.convert.families import FINGERPRINT
from unlearning_jax.convert.folder import ModelFiles
from unlearning_jax.convert.names import (
  State,
  as_shape,
  canonical,
  report_mismatch,
  torch_views,
)
from unlearning_jax.convert.output import (
  check_dtype,
  check_output,
  replacing,
  write_safetensors,
)
from unlearning_jax.convert.reader import as_float32
from unlearning_jax.convert.torch_files import write_weights

# Training code saves modules as attributes, which prefix the keys.
_WRAPPERS = re.compile(
  r"^(model\.(?!diffusion_model\.))?(unet\.|text_encoder\.|vae\.)?"
)
# Custom Diffusion's layers stand in the processor of the attention that they
# replace.
_CUSTOM = re.compile(r"\.processor\.(to_[qkv]|to_out)_custom_diffusion\.")
# What a file holds beside weights of a model, and what to call it.
_BESIDE = {
  re.compile(r"modifier_token\.|embed$"): "the vectors of new words",
  re.compile(r"(vision_model|visual_projection|visual|safety_checker)\."): (
    "an encoder of images"
  ),
  re.compile(r"text_projection(\.weight)?$|logit_scale$"): (
    "the projection of CLIP"
  ),
}


def fingerprint(states: Mapping[str, Mapping[str, np.ndarray]]) -> str:
  """SHA-256 of a model's weights: names, shapes, dtypes and bytes.

  Args:
    states: {component: torch state dict}, in any order.
  """
  digest = hashlib.sha256()
  for component in sorted(states):
    for name in sorted(states[component]):
      value = states[component][name]
      header = f"{component}/{name} {value.shape} {value.dtype}\n"
      digest.update(header.encode())
      digest.update(value.tobytes())
  return digest.hexdigest()


def params_fingerprint(params: Mapping[str, Mapping[str, Any]]) -> str:
  """`fingerprint` of a model that is in use, remembered with its arrays.

  Args:
    params: {text_encoder, unet, vae}, flax parameters.
  """
  return _of_leaves(traverse_util.flatten_dict(dict(params), sep="/"))


@memory.once
def _of_leaves(leaves: Mapping[str, Any]) -> str:
  params = traverse_util.unflatten_dict(dict(leaves), sep="/")
  return fingerprint({part: torch_views(tree) for part, tree in params.items()})


def overlay(
  base: ModelFiles,
  state: Mapping[str, np.ndarray],
  *,
  ema: bool | None = None,
  source: str = "state dict",
) -> ModelFiles:
  """Replaces the tensors of `base` that `state` holds.

  Args:
    base: the model that the file was made from.
    state: all or some tensors of a UNet, text encoder or VAE, in the diffusers
      or the single-file layout. Prefixes of wrappers (`module.`, `unet.`,
      `text_encoder.`) are removed.
    ema: as in `compvis.from_compvis`.
    source: what to call the file in errors.

  Returns:
    A model that shares every other tensor with `base`.

  Raises:
    ValueError: a key matches nothing in `base`, its tensor has another shape
      there, or is not finite.
  """
  parts = _split(base, _weights(state, source), ema, source)
  matched = sum(
    name in base.states[part] for part, found in parts.items() for name in found
  )
  if not matched:
    shown = {part: next(iter(old)) for part, old in base.states.items()}
    raise ValueError(
      f"{source}: none of its {len(state)} tensors is one of the base model's; "
      f"it has {list(state)[:5]}, the base has e.g. {shown}"
    )
  states = dict(base.states)
  for component, found in parts.items():
    old = base.states[component]
    new = {
      name: as_shape(value, old[name].shape) if name in old else value
      for name, value in found.items()
    }
    report_mismatch(
      f"{source} over {component}",
      extra=[name for name in new if name not in old],
      misshaped=[
        f"{name} {value.shape}, expected {old[name].shape}"
        for name, value in new.items()
        if name in old and value.shape != old[name].shape
      ],
    )
    states[component] = old | as_float32(new, source)
    logging.info(
      "%s: %d of %d tensors of %s", source, len(new), len(old), component
    )
  return dataclasses.replace(base, states=states)


def without_new_words(model: ModelFiles, base: ModelFiles) -> ModelFiles:
  """A model without the words that its training added to the base's.

  Code that begins with textual inversion, as Forget-Me-Not, saves a longer
  table of tokens. No prompt of the base's tokenizer reads the added rows.
  """
  table = "text_model.embeddings.token_embedding.weight"
  text = model.states["text_encoder"]
  known = base.states["text_encoder"].get(table)
  if known is None or table not in text or len(text[table]) <= len(known):
    return model
  logging.warning(
    "%s has %d rows and the base's %d; the last %d are new words, which are "
    "left out", table, len(text[table]), len(known),
    len(text[table]) - len(known),
  )  # fmt: skip
  config = model.configs["text_encoder"] | {"vocab_size": len(known)}
  return dataclasses.replace(
    model,
    configs={**model.configs, "text_encoder": config},
    states=model.states
    | {"text_encoder": {**text, table: text[table][: len(known)]}},
    tokenizer=base.tokenizer,
  )


def save_delta(
  path: str | os.PathLike,
  base: ModelFiles,
  edited: ModelFiles,
  *,
  dtype: str = "float32",
  overwrite: bool = False,
) -> list[str]:
  """Writes the tensors that differ, whole, with the base's fingerprint.

  Names are those of the diffusers layout without the component, so that torch
  `unet.load_state_dict(tensors, strict=False)` applies a UNet's delta.

  Args:
    path: the `.safetensors` file.
    dtype: "float32" (exact), "float16" or "bfloat16".

  Returns:
    The names written.

  Raises:
    ValueError: the file exists without `overwrite`; the models have different
      shapes, or do not differ.
  """
  check_dtype(dtype)
  path = check_output(path, overwrite)
  changed: State = {}
  for component, old in base.states.items():
    new = edited.states[component]
    report_mismatch(
      f"{component}: edited model against base",
      missing=sorted(set(old) - set(new)),
      extra=sorted(set(new) - set(old)),
      misshaped=[k for k in old if k in new and old[k].shape != new[k].shape],
    )
    for name, value in old.items():
      if not np.array_equal(value, new[name]):
        changed[name] = new[name]
  if not changed:
    raise ValueError(f"{path}: the models do not differ; no delta to write")
  with replacing(path) as partial:
    metadata = {**edited.metadata, FINGERPRINT: fingerprint(base.states)}
    write_safetensors(partial, changed, dtype, metadata)
  return list(changed)


def save_part(
  path: str | os.PathLike,
  model: ModelFiles,
  part: str,
  *,
  dtype: str = "float32",
  overwrite: bool = False,
) -> None:
  """Writes one component's state dict, under diffusers names, as one file.

  Args:
    path: ends in `.safetensors` or `.pt`.
    part: `unet`, `text_encoder` or `vae`.

  Raises:
    ValueError: the file exists without `overwrite`, or a weight is not finite
      in `dtype`.
  """
  _save(
    path,
    model.states[part],
    {"layout": "diffusers"} | dict(model.metadata),
    dtype,
    overwrite,
  )


def save_single_file(
  path: str | os.PathLike,
  model: ModelFiles,
  *,
  dtype: str = "float32",
  overwrite: bool = False,
) -> None:
  """Writes the whole model as one file in the original layout.

  Args:
    path: ends in `.safetensors` or `.ckpt`.

  Raises:
    ValueError: as `save_part`.
  """
  scheduler = model.configs.get("scheduler", {})
  state = originals.to_original(model.states, scheduler)
  header = {"layout": "original"} | dict(model.metadata)
  _save(path, state, header, dtype, overwrite)


def _save(
  path: str | os.PathLike,
  state: Mapping[str, np.ndarray],
  header: Mapping[str, str],
  dtype: str,
  overwrite: bool,
):
  check_dtype(dtype)
  path = check_output(path, overwrite)
  with replacing(path) as partial:
    write_weights(partial, path.suffix, state, dtype, header)


def _weights(state: Mapping[str, np.ndarray], source: str) -> State:
  """The weights of a file by plain names; says what else it holds."""
  beside: dict[str, list[str]] = {}

  def rule(key: str) -> str | None:
    name = _CUSTOM.sub(r".\1.", _WRAPPERS.sub("", key))
    for pattern, kind in _BESIDE.items():
      if pattern.match(name):
        beside.setdefault(kind, []).append(key)
        return None
    return name

  found = names.renamed(names.unwrapped(state, source), rule, source)
  for kind, keys in beside.items():
    logging.warning(
      "%s: %s (%s) belong to no weight here and are left out", source, kind,
      ", ".join(keys[:3]),
    )  # fmt: skip
  return found


def _split(
  base: ModelFiles, state: State, ema: bool | None, source: str
) -> dict[str, State]:
  """Tensors by component; those that fit none count as the UNet's."""
  prefixed = compvis.add_prefixes(state)
  if compvis.is_compvis(prefixed):
    scheduler = base.configs.get("scheduler", {})
    compvis.check_marks(prefixed, scheduler, source)
    depths = compvis.Depths.from_configs(base.configs)
    parts = compvis.from_compvis(prefixed, depths, ema=ema, source=source)
    return {part: canonical(found, source) for part, found in parts.items()}
  if ema is not None:
    raise ValueError(f"{source}: ema={ema}, but its layout has no such choice")
  parts = {}
  for name, value in canonical(state, source).items():
    fits = (c for c, old in base.states.items() if name in old)
    parts.setdefault(next(fits, "unet"), {})[name] = value
  return parts
