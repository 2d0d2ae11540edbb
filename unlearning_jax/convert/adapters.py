"""Adapter files: LoRA and its kin, laid over the weights that they adapt.

A key names a weight of the UNet or the text encoder, and says which part of its
adapter it holds. The keys of diffusers (old and new), PEFT, kohya (A1111),
ComfyUI and LyCORIS are read; `adapter_kinds` has the sums.
"""

import dataclasses
import difflib
import functools
import math
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from absl import logging

from unlearning_jax import durable
from unlearning_jax.convert import adapter_kinds, originals
from unlearning_jax.convert.folder import ModelFiles
from unlearning_jax.convert.lazy import Lazy
from unlearning_jax.convert.names import State, report_mismatch
from unlearning_jax.convert.reader import (
  as_float32,
  read_metadata,
  read_state_dict,
)

# Component -> how names begin whose dots are underscores: kohya's, and
# LyCORIS'. diffusers counts text encoders when it writes kohya's.
_FLAT = {
  "unet": ("lora_unet_", "lycoris_"),
  "text_encoder": ("lora_te_", "lora_te1_", "lycoris_"),
}
# The same of ComfyUI, which keeps the dots.
_COMFY = {
  "unet": ("diffusion_model.",),
  "text_encoder": ("text_encoders.clip_l.transformer.",),
}
# How a key ends -> which part of an adapter its tensor is; "" for the match.
_ENDS = {
  r"\.(lora_A(\.default)?|lora(_linear_layer)?[._]down)\.weight$": "down",
  r"\.(lora_B(\.default)?|lora(_linear_layer)?[._]up)\.weight$": "up",
  r"\.lora_mid\.weight$": "mid",
  r"\.alpha$": "alpha",
  r"\.lora_magnitude_vector(\.default)?(\.weight)?$": "magnitude",
  r"\.w_norm$": "diff",
  r"\.b_norm$": "diff_b",
  r"\.(hada_w[12]_[ab]|hada_t[12]|lokr_w[12]_[ab]|lokr_w[12]|lokr_t2"
  r"|dora_scale|diff_b|diff|on_input|ia3_l)(\.default)?$": "",
  # Only LyCORIS' (IA)^3 calls its factors so.
  r"\.weight$": "ia3",
}
# The oldest keys of diffusers hold adapters beside the attention's own layers.
_OLDEST = re.compile(r"\.processor\.(to_[qkv]|to_out)_lora\.")
_WORDS = "bundle_emb."  # begins the keys of words that a LoRA was trained with
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
  """Whether keys are those of a LoRA, or of another adapter that is read."""
  return any(_split(key)[1] not in ("", "alpha", "ia3") for key in state)


def read_lora(
  path: str | os.PathLike,
  weights: Mapping[str, Iterable[str]],
  state: Mapping[str, np.ndarray] | None = None,
) -> dict[tuple[str, str], Factors]:
  """Reads the factors in a LoRA file.

  Args:
    path: a file that PEFT wrote has `adapter_config.json` beside it.
    weights: component -> torch names of the weights that it may adapt.
    state: the file's tensors, where they have been read already.

  Returns:
    (component, weight's name) -> float32 factors in torch's layout.

  Raises:
    ValueError: as `read_adapters`; an adapter is no LoRA of two factors.
  """
  found = {}
  for place, (parts, scale) in read_adapters(path, weights, state).items():
    if not {"down", "up"} <= set(parts) <= {"down", "up", "alpha"}:
      raise ValueError(
        f"{path}: {place[1]!r} has {sorted(parts)}, which is no LoRA of two "
        "factors; lay it over its base: launch.convert"
      )
    up = np.float32(scale) * parts["up"]
    found[place] = Factors(parts["down"], up)
  return found


def read_adapters(
  path: str | os.PathLike,
  weights: Mapping[str, Iterable[str]],
  state: Mapping[str, np.ndarray] | None = None,
) -> dict[tuple[str, str], tuple[State, float]]:
  """Reads the adapters in a file; arguments as `read_lora`.

  Returns:
    (component, weight's name) -> float32 parts, and the scale of their product.

  Raises:
    ValueError: a key fits no weight or several, is given twice, lacks another
      part, is not finite or has a second alpha; the message names it.
  """
  state = read_state_dict(path) if state is None else state
  if not state:
    raise ValueError(f"{path}: it holds no tensors")
  state = _without_words(state, path)
  places, components = _places(weights), " or ".join(weights)
  found: dict[tuple[str, str], State] = {}
  origin: dict[tuple[str, str, str], str] = {}
  for key, value in state.items():
    module, part = _split(key)
    fits = places.get(module, ()) if part else ()
    if len(fits) != 1:
      near = difflib.get_close_matches(module, places, n=1)
      raise ValueError(
        f"{path}: {key!r} fits "
        + (f"{fits[0]} and {fits[1]}" if fits else f"no {components} weight")
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
    place: _read_one(parts, config, place, f"{path}")
    for place, parts in sorted(found.items())
  }


def _without_words(
  state: Mapping[str, np.ndarray], path: str | os.PathLike
) -> Mapping[str, np.ndarray]:
  """The tensors without learnt words, which can be bundled with a LoRA."""
  words = {key.split(".")[1] for key in state if key.startswith(_WORDS)}
  if not words:
    return state
  logging.warning(
    "%s: the vectors of new words (%s) belong to no weight here and are left "
    "out", path, ", ".join(sorted(words)),
  )  # fmt: skip
  return {k: v for k, v in state.items() if not k.startswith(_WORDS)}


def merge_lora(
  base: ModelFiles, path: str | os.PathLike, state: Mapping[str, np.ndarray]
) -> ModelFiles:
  """`base` with the adapters of a file in its weights.

  Args:
    state: the file's tensors.

  Returns:
    A model that shares every other tensor with `base`.

  Raises:
    ValueError: as `read_adapters`; parts do not fit the shape of their weight.
  """
  states = {part: dict(old) for part, old in base.states.items()}
  adapted, wrong = {part: tuple(states[part]) for part in _FLAT}, []
  for place, (parts, scale) in read_adapters(path, adapted, state).items():
    part, name = place
    old = states[part][name]
    adapt = functools.partial(_adapted, parts, scale)
    new = adapt(np.asarray(old))
    if new is None:
      shapes = (f"{key} {value.shape}" for key, value in parts.items())
      wrong.append(f"{name} {old.shape}, {', '.join(shapes)}")
      continue
    # One that stays in its file is adapted again when it is needed.
    states[part][name] = old.then(adapt) if isinstance(old, Lazy) else new
    bias = name.removesuffix("weight") + "bias"
    if bias in states[part]:
      whole = np.asarray(states[part][bias])
      states[part][bias] = adapter_kinds.merged_bias(parts, whole)
    elif "diff_b" in parts:
      wrong.append(f"{name}, which has no bias, diff_b")
  report_mismatch(f"{path}", misshaped=wrong)
  return dataclasses.replace(base, states=states)


def _adapted(
  parts: Mapping[str, np.ndarray], scale: float, weight: np.ndarray
) -> np.ndarray | None:
  """A weight with an adapter in it; None if their shapes do not fit."""
  if set(parts) == {"diff_b"}:
    return weight
  parts = {key: np.asarray(value) for key, value in parts.items()}
  linear = _is_linear(parts, weight)
  flat = weight.reshape(weight.shape[:2]) if linear else weight
  new = adapter_kinds.merged(parts, scale, flat)
  return None if new is None else new.reshape(weight.shape)


def _is_linear(parts: Mapping[str, np.ndarray], old: np.ndarray) -> bool:
  """Whether a 1x1 convolution is adapted as the linear layer that it is."""
  return old.shape[2:] == (1, 1) and all(v.ndim <= 2 for v in parts.values())


def _split(key: str) -> tuple[str, str]:
  """The module that a key names, and the part that it holds or ""."""
  key = _OLDEST.sub(r".\1.lora.", key.removeprefix(_WRAPPER))
  key = key.replace(".to_out.lora.", ".to_out.0.lora.")
  for end, part in _ENDS.items():
    if match := re.search(end, key):
      module = key[: match.start()]
      if part == "ia3" and not module.startswith(("lora_", "lycoris_")):
        break
      return module, part or match[1]
  return key, ""


def _places(
  weights: Mapping[str, Iterable[str]],
) -> dict[str, list[tuple[str, str]]]:
  """Each name that a file may give a module -> the weights it can mean."""
  places: dict[str, list[tuple[str, str]]] = {}
  for part, names in weights.items():
    names = list(names)
    layout = originals.unet_names(names) if part == "unet" else {}
    for name in names:
      module = name.removesuffix(".weight")
      if module == name:
        continue
      # Some versions of transformers leave `text_model` out.
      shorts = {module, module.removeprefix("text_model.")}
      own = layout.get(name, module).removesuffix(".weight")
      # Only PEFT leaves the component out.
      called = {f"{part}.{short}" for short in shorts} | shorts
      for start in _FLAT[part]:
        called |= {start + x.replace(".", "_") for x in (*shorts, own)}
      called |= {start + x for start in _COMFY[part] for x in (own, *shorts)}
      for one in called:
        places.setdefault(one, []).append((part, name))
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
    return _checked(durable.read_json(beside), f"{beside}")
  held, where = read_metadata(path).get(_METADATA, "{}"), f"{path}: {_METADATA}"
  return _checked(durable.from_json(held, where), where)


def _checked(config: dict[str, Any], where: str) -> dict[str, Any]:
  """PEFT's configuration, whose numbers are numbers.

  Raises:
    ValueError: naming the key.
  """
  for key, value in config.items():
    # Of several components, each key begins with one's name.
    name = key.rpartition(".")[2]
    if name in ("rank_pattern", "alpha_pattern"):
      good = value is None or isinstance(value, dict)
      table = value or {}
      if good and not (
        all(map(_is_number, table.values())) and all(map(_is_module, table))
      ):
        good = False
    elif name in ("r", "lora_alpha", "alpha"):
      good = value is None or _is_number(value)
    elif name == "feedforward_modules":
      several = [value] if isinstance(value, str) else value or []
      good = isinstance(several, list) and all(map(_is_module, several))
    else:
      continue
    if not good:
      raise ValueError(
        f"{where}: {key}={str(value)[:80]!r}; allowed: finite numbers, names "
        "of modules, and patterns of them"
      )
  return config


def _is_number(value: object) -> bool:
  if isinstance(value, bool) or not isinstance(value, int | float):
    return False
  # A number of hundreds of digits makes `math.isfinite` raise.
  return abs(value) < 1e300


def _is_module(name: object) -> bool:
  """Whether a text is a pattern of names that is matched in short time."""
  if not isinstance(name, str) or len(name) > 1000:
    return False
  # A group that repeats can be matched in more ways than there is time for.
  if re.search(r"\)[*+{]", name) or len(re.findall(r"[*+?{]", name)) > 4:
    return False
  try:
    re.compile(name)
  except (re.error, RecursionError, OverflowError):
    return False
  return True


def _read_one(
  parts: Mapping[str, np.ndarray],
  config: Mapping[str, Any],
  place: tuple[str, str],
  source: str,
) -> tuple[State, float]:
  """The float32 parts of one module, and the scale of their product."""
  component, name = place
  numbers = {k: v for k, v in parts.items() if k not in ("alpha", "on_input")}
  floats = as_float32({f"{name} {k}": v for k, v in numbers.items()}, source)
  found = dict(zip(numbers, floats.values(), strict=True))
  found |= {k: np.asarray(v) for k, v in parts.items() if k not in numbers}
  try:
    adapter_kinds.check(found, name)
  except ValueError as error:
    raise ValueError(f"{source}: {error}") from error
  own = {k.removeprefix(f"{component}."): v for k, v in config.items()}
  if "ia3_l" in found:
    # PEFT scales what goes into these layers, and what comes out of others.
    inside = own.get("feedforward_modules") or ()
    inside = (inside,) if isinstance(inside, str) else inside
    module = name.removesuffix(".weight")
    inner = _of_pattern(dict.fromkeys(inside, True), module, False)
    found["on_input"] = np.array(inner)
  if own.get("use_dora") and "magnitude" not in found:
    raise ValueError(f"{source}: use_dora=True, but {name!r} has no magnitude")
  return found, _scale(found, own, name, source)


def _scale(
  parts: State, config: Mapping[str, Any], name: str, source: str
) -> float:
  """Alpha / rank, as the tool that wrote the file takes them."""
  rank = adapter_kinds.rank(parts)
  in_config = next((k for k in ("lora_alpha", "alpha") if k in config), None)
  alpha = config[in_config] if in_config else None
  module = name.removesuffix(".weight")
  alpha = _of_pattern(config.get("alpha_pattern"), module, alpha)
  if rank is None:
    # LyCORIS leaves alpha out for two whole factors; PEFT does not.
    rank = _of_pattern(config.get("rank_pattern"), module, config.get("r", 1))
    if alpha is None or "lokr_w1" not in parts:
      return 1.0
  elif "alpha" in parts:
    if alpha is not None or parts["alpha"].size != 1:
      raise ValueError(
        f"{source}: {name!r} has an alpha {parts['alpha']} and {in_config} "
        f"{alpha}; allowed: one number"
      )
    alpha = float(parts["alpha"].item())
  root = math.sqrt(rank) if config.get("use_rslora") else rank
  alpha = root if alpha is None else alpha
  if not (rank and math.isfinite(alpha)):
    raise ValueError(f"{source}: {name!r} has alpha {alpha}, rank {rank}")
  return alpha / root


def _of_pattern(
  table: Mapping[str, Any] | None, module: str, default: Any
) -> Any:
  """PEFT's own number of a module, where its config names the module's end."""
  for end, value in (table or {}).items():
    if re.match(rf"(.*\.)?({end})$", module):
      return value
  return default
