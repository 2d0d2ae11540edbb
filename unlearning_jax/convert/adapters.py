"""LoRA files: low-rank factors of some weights, W' = W + up down.

A key names a weight of the UNet or the text encoder and says what it holds: one
of the two factors, or the alpha that scales their product by alpha / rank. The
keys of diffusers (old and new), PEFT and kohya (ComfyUI, A1111) are read.
"""

import dataclasses
import difflib
import json
import math
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from unlearning_jax.convert.folder import ModelFiles
from unlearning_jax.convert.names import State, as_shape, report_mismatch
from unlearning_jax.convert.reader import (
  as_float32,
  read_json,
  read_metadata,
  read_state_dict,
)

# Component -> kohya's prefixes. diffusers counts text encoders when it writes
# kohya's keys.
_KOHYA = {
  "unet": ("lora_unet_",),
  "text_encoder": ("lora_te_", "lora_te1_"),
}
# How a key ends -> what its tensor is.
_ENDS = {
  r"\.(lora_A(\.default)?|lora(_linear_layer)?[._]down)\.weight$": "down",
  r"\.(lora_B(\.default)?|lora(_linear_layer)?[._]up)\.weight$": "up",
  r"\.alpha$": "alpha",
}
# The oldest keys of diffusers hold adapters beside the attention's own layers.
_OLDEST = re.compile(r"\.processor\.(to_[qkv]|to_out)_lora\.")
_WRAPPER = "base_model.model."  # begins PEFT's keys in files that PEFT writes
_METADATA = "lora_adapter_metadata"  # diffusers keeps PEFT's config under it
_PEFT_CONFIG = "adapter_config.json"  # PEFT keeps its config in it


@dataclasses.dataclass(frozen=True, eq=False)
class Factors:
  """The factors of one weight; `up` includes alpha / rank.

  Attributes:
    down: (r, in), or (r, in, h, w) for a convolution.
    up: (out, r), or (out, r, 1, 1) for a convolution.
  """

  down: np.ndarray
  up: np.ndarray


def is_lora(state: Iterable[str]) -> bool:
  """Whether keys are those of a LoRA file."""
  return any(_split(key)[1] in ("down", "up") for key in state)


def read_lora(
  path: str | os.PathLike,
  weights: Mapping[str, Iterable[str]],
  state: Mapping[str, np.ndarray] | None = None,
) -> dict[tuple[str, str], Factors]:
  """Reads the factors in a file.

  Args:
    path: a file that PEFT wrote has `adapter_config.json` beside it.
    weights: component -> torch names of the weights that it may adapt.
    state: the file's tensors, where they have been read already.

  Returns:
    (component, weight's name) -> float32 factors in torch's layout.

  Raises:
    ValueError: a key fits no weight or several, is given twice, lacks its other
      factor, is not finite or has a second alpha; the message names it.
  """
  state = read_state_dict(path) if state is None else state
  if not state:
    raise ValueError(f"{path}: it holds no tensors")
  places, parts = _places(weights), " or ".join(weights)
  found: dict[tuple[str, str], State] = {}
  origin: dict[tuple[str, str, str], str] = {}
  for key, value in state.items():
    module, part = _split(key)
    fits = places.get(module, ()) if part else ()
    if len(fits) != 1:
      near = difflib.get_close_matches(module, places, n=1)
      raise ValueError(
        f"{path}: {key!r} fits "
        + (f"{fits[0]} and {fits[1]}" if fits else f"no {parts} weight")
        + (f"; nearest: {near[0]}" if near and not fits else "")
      )
    if (*fits[0], part) in origin:
      raise ValueError(
        f"{path}: {fits[0][1]!r} is given twice, as "
        f"{origin[*fits[0], part]!r} and {key!r}"
      )
    origin[*fits[0], part] = key
    found.setdefault(fits[0], {})[part] = value
  config = _config(path, state)
  return {
    place: _factors(parts, config, place, f"{path}")
    for place, parts in sorted(found.items())
  }


def merge_lora(
  base: ModelFiles, path: str | os.PathLike, state: Mapping[str, np.ndarray]
) -> ModelFiles:
  """`base` with the products of a LoRA file added to its weights.

  Args:
    state: the file's tensors.

  Returns:
    A model that shares every other tensor with `base`.

  Raises:
    ValueError: as `read_lora`; factors do not fit the shape of their weight.
  """
  states = {part: dict(old) for part, old in base.states.items()}
  adapted, wrong = {part: tuple(states[part]) for part in _KOHYA}, []
  for (part, name), factors in read_lora(path, adapted, state).items():
    old, down, up = states[part][name], factors.down, factors.up
    change = None
    if down.ndim >= 2 and up.shape[1:2] == down.shape[:1]:
      flat = up.reshape(*up.shape[:2], -1)
      if flat.shape[2] == 1:
        change = flat[..., 0] @ down.reshape(len(down), -1)
        change = as_shape(change.reshape(-1, *down.shape[1:]), old.shape)
    if change is None or change.shape != old.shape:
      wrong.append(f"{name} {old.shape}, down {down.shape}, up {up.shape}")
    else:
      states[part][name] = old + change
  report_mismatch(f"{path}", misshaped=wrong)
  return dataclasses.replace(base, states=states)


def _split(key: str) -> tuple[str, str]:
  """The module that a key names, and a value of `_ENDS` or ""."""
  key = _OLDEST.sub(r".\1.lora.", key.removeprefix(_WRAPPER))
  key = key.replace(".to_out.lora.", ".to_out.0.lora.")
  for end, part in _ENDS.items():
    if match := re.search(end, key):
      return key[: match.start()], part
  return key, ""


def _places(
  weights: Mapping[str, Iterable[str]],
) -> dict[str, list[tuple[str, str]]]:
  """Each name that a file may give a module -> the weights it can mean."""
  places: dict[str, list[tuple[str, str]]] = {}
  for part, names in weights.items():
    for name in names:
      module = name.removesuffix(".weight")
      if module == name:
        continue
      # Some versions of transformers leave `text_model` out.
      for short in {module, module.removeprefix("text_model.")}:
        kohya = [start + short.replace(".", "_") for start in _KOHYA[part]]
        # Only PEFT leaves the component out.
        for called in (f"{part}.{short}", short, *kohya):
          places.setdefault(called, []).append((part, name))
  return places


def _config(
  path: str | os.PathLike, state: Mapping[str, np.ndarray]
) -> dict[str, Any]:
  """PEFT's configuration, from the header or the file beside the weights."""
  if any(key.startswith(_WRAPPER) for key in state):
    beside = pathlib.Path(path).with_name(_PEFT_CONFIG)
    if not beside.is_file():
      raise ValueError(
        f"{path}: its keys are PEFT's own, whose alpha is in {_PEFT_CONFIG}; "
        "put it beside the file"
      )
    return read_json(beside)
  return json.loads(read_metadata(path).get(_METADATA, "{}"))


def _factors(
  parts: Mapping[str, np.ndarray],
  config: Mapping[str, Any],
  place: tuple[str, str],
  source: str,
) -> Factors:
  component, name = place
  if not {"down", "up"} <= set(parts):
    raise ValueError(f"{source}: {name!r} has {sorted(parts)} only")
  pair = {f"{name} {part}": parts[part] for part in ("down", "up")}
  down, up = as_float32(pair, source).values()
  own = {k.removeprefix(f"{component}."): v for k, v in config.items()}
  for key in ("alpha_pattern", "use_dora"):
    if own.get(key):
      raise ValueError(f"{source}: {key}={own[key]!r} is not supported")
  rank = len(down) if down.ndim else 0
  root = math.sqrt(rank) if own.get("use_rslora") else rank
  alpha = own.get("lora_alpha", root)
  if "alpha" in parts:
    if "lora_alpha" in own or parts["alpha"].size != 1:
      raise ValueError(
        f"{source}: {name!r} has an alpha {parts['alpha']} and lora_alpha "
        f"{own.get('lora_alpha')}; allowed: one number"
      )
    alpha = float(parts["alpha"].item())
  if not (rank and math.isfinite(alpha)):
    raise ValueError(f"{source}: {name!r} has alpha {alpha}, rank {rank}")
  return Factors(down, np.float32(alpha / root) * up)
