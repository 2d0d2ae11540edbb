"""What was renamed: for who types an old name, and for records that hold one.

  now("per_group", settings)          -> "rows_per_group", to refuse it with
  config({"per_group": 2})            -> {"rows_per_group": 2}

Nothing on disk is rewritten: config, rows, inputs and summary of a record pass
through here as they are read, and come out the same if they are new.
"""

import functools
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

# Settings by the key that they stand under; "" is the top of a config.
SETTINGS: dict[str, dict[str, str]] = {
  "": {
    "per_group": "rows_per_group", "others": "other_rows", "grid": "grid_rows",
    "table": "prompt_table", "too_long": "long_prompts", "words": "new_words",
    "proxy": "diffusion_classifier", "neutral": "anchor",
    "defence": "defense", "neighbours": "neighbors",
    "revival": "revival_threshold",
  },
  "sampling": {"num_steps": "num_inference_steps"},
  "target_sampling": {"num_steps": "num_inference_steps"},
  "hparams": {
    "k": "num_tokens", "images": "num_images",
    "image_steps": "num_inference_steps", "regulariser": "regularizer",
    "regularization": "anchor_loss_weight",
  },
  "pool": {"images": "num_images"},
  "defence": {"k": "num_directions", "centre": "center"},
  "blocks": {"defences": "defenses"},
}  # fmt: skip
# What a config's option, a column or a folder may be called.
NAMES = {
  "uda": "unlearn_diff_atk", "cce": "concept_inversion",
  "memorisation": "memorization",
}  # fmt: skip
# Numbers of an attack.
NUMBERS = {
  "sure": "high_confidence_asr", "conditional": "attacked_asr",
  "survival": "roundtrip_rate",
}  # fmt: skip
# Keys of a row, of its blocks, and of what it holds by model.
ROWS = {
  "stage": "model", "survived": "roundtrip", "proxy": "diffusion_classifier",
  "proxy_calls": "diffusion_classifier_calls", "original": "base",
  "neutral_error": "anchor_error", "overlap_centred": "overlap_centered",
}  # fmt: skip
SUMMARY = {
  "stages": "models", "stage": "model", "original_gap": "base_gap",
  "original_label": "base_label",
}  # fmt: skip
_TABLES = (*SETTINGS.values(), NAMES, NUMBERS, ROWS, SUMMARY)
# What a protocol's changes are called in its own name.
_CHANGE = re.compile(r"(?<=[~,])(per_group|others|num_steps)(?==)")
_OLD = {new: old for old, new in NAMES.items()}


def now(name: str, allowed: Collection[str]) -> str | None:
  """What an old name is called, if that is one of the allowed."""
  new = (table[name] for table in _TABLES if name in table)
  return next((one for one in new if one in allowed), None)


def config(values: Mapping[str, Any], place: str = "") -> dict[str, Any]:
  """Plain settings of a record, nested ones too.

  Args:
    values: as `config.json` has them.
    place: the key that they stand under.
  """
  table, found = SETTINGS.get(place, {}), {}
  for key, value in values.items():
    # Each algorithm of a study is a config.
    below = "" if place == "algorithms" else key
    if isinstance(value, Mapping):
      value = config(value, below)
    elif isinstance(value, list | tuple):
      value = type(value)(
        config(one, below) if isinstance(one, Mapping) else one for one in value
      )
    elif key in ("title", "protocol") and not place:
      value = _text(value)
    new = table.get(key, key)
    # FMN's `images` says whether; the old name of `num_images` is a count.
    own = new in values or (key == "images" and isinstance(value, bool))
    found[key if own else new] = value
  return found


def _text(value: Any) -> Any:
  """A title, as of a matrix's cell, or a protocol's name."""
  if not isinstance(value, str):
    return value
  both = SETTINGS[""] | SETTINGS["sampling"]
  value = _CHANGE.sub(lambda match: both[match[1]], value)
  first, on, rest = value.partition(" on ")
  return NAMES.get(first, first) + on + rest


def inputs(hashes: Mapping[str, str]) -> dict[str, str]:
  """Inputs of a start, by their names."""
  named = {"table": "prompt_table"}
  return {_text(named.get(name, name)): one for name, one in hashes.items()}


def row(values: Mapping[str, Any]) -> dict[str, Any]:
  """A row of a record."""
  found = {ROWS.get(key, key): value for key, value in values.items()}
  if "stage" in values and found["model"] == "before":
    found["model"] = "base"
  # Not all that it holds: a judge's heads may have any name.
  for key in ("blocks", "predictors", "base", "victim"):
    if key in found:
      found[key] = _keys(found[key], ROWS)
  return found


def summary(values: Mapping[str, Any]) -> dict[str, Any]:
  """What `summary.json` holds."""
  found = _keys(values, SUMMARY)
  if "stages" in values:
    found = _models(found)
  for one in (found, found.get("control", {})):
    # Of an attack they are one list, of an evaluation one for each model.
    if isinstance(one.get("measures"), list):
      one["measures"] = [
        {**m, "name": NUMBERS.get(m["name"], m["name"])}
        for m in one["measures"]
      ]
  return found


def _models(value: Any) -> Any:
  """The base of an evaluation's document, wherever it is named."""
  if isinstance(value, Mapping):
    return {_models(key): _models(one) for key, one in value.items()}
  if isinstance(value, list):
    return [_models(one) for one in value]
  return "base" if value == "before" else value


def _keys(value: Any, table: Mapping[str, str]) -> Any:
  renamed = functools.partial(_keys, table=table)
  if isinstance(value, Mapping):
    return {table.get(key, key): renamed(one) for key, one in value.items()}
  if isinstance(value, list) and value and isinstance(value[0], Mapping):
    return list(map(renamed, value))
  return value


def folder(path: pathlib.Path) -> pathlib.Path:
  """A cell's folder: the one that is there, of its old name too."""
  old = path.with_name(_OLD.get(path.name, path.name))
  return old if old.exists() and not path.exists() else path


def before(values: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
  """Settings by the names that they had when something was hashed.

  Args:
    values: of a hash's facts.
    keys: under which they stand, "" for the top.
  """
  was = {new: old for key in keys for old, new in SETTINGS[key].items()}
  return {
    was.get(key, key): before(value, keys)
    if isinstance(value, Mapping)
    else value
    for key, value in values.items()
  }
