"""Parts that several configs share."""

import dataclasses
import re
import typing
from typing import Any

import ml_collections

from unlearning_jax import extensions, settings
from unlearning_jax.concepts import check_choice

# The sizes that a config's argument may name, as `config.py:tiny`.
SIZES = ("tiny", "sd14", "sd21")
# The model of each size.
MODELS = {
  "tiny": "shapes",
  "sd14": "CompVis/stable-diffusion-v1-4",
  "sd21": "stabilityai/stable-diffusion-2-1-base",
}


# Arguments that hold several phrases.
PHRASES = ("name", "anchor", "preserve")


def parse(argument: str, **defaults: str) -> dict[str, str]:
  """Reads what follows a config's colon: a size, then `key=value` parts.

  Args:
    argument: as `sd14,task=unsafe`; a part without `=` is the size, or goes on
      with the phrases before it, `name=violence, nudity`.
    **defaults: the config's keys, with their defaults.

  Raises:
    ValueError: an unknown key or size, with what is allowed.
  """
  found, last = dict(defaults), ""
  for part in _split(",", argument):
    key, equals, value = part.rpartition("=")
    if not equals and last in PHRASES and part.strip() not in SIZES:
      found[last] += f",{part}"
      continue
    last = key = key or "size"
    check_choice("config argument", key, defaults)
    found[key] = value
  check_choice("config argument size", found["size"], SIZES)
  return found


def phrases(text: str) -> tuple[str, ...]:
  """The phrases of `a+b`, `a, b` or `a; b`; `"a, b"` in quotes is one.

  Raises:
    ValueError: a quote that nothing ends.
  """
  parts = (part.strip().strip('"').strip() for part in _split("+,;", text))
  return tuple(filter(None, parts))


def _split(marks: str, text: str) -> list[str]:
  """The parts of a text between marks that stand outside of quotes."""
  if text.count('"') % 2:
    raise ValueError(f"config argument {text!r}: a quote has no end")
  return re.findall(rf'(?:[^"{re.escape(marks)}]|"[^"]*")+', text)


def config_of(settings: Any) -> ml_collections.ConfigDict:
  """Settings as a config; a None becomes a placeholder of its type."""
  config = ml_collections.ConfigDict()
  hints = typing.get_type_hints(type(settings))
  for field in dataclasses.fields(settings):
    value = getattr(settings, field.name)
    if dataclasses.is_dataclass(value):
      value = config_of(value)
    elif value is None:
      value = ml_collections.config_dict.placeholder(
        typing.get_args(hints[field.name])[0]
      )
    config[field.name] = value
  return config


def comparison(size: str) -> ml_collections.ConfigDict:
  """What to draw before and after an erasure, and with which model.

  `tiny` draws and judges the Shapes model. The full sizes draw the prompts in
  `prompts` and have no judge. `--config.model` takes a folder or a hub id;
  `launch.convert` makes a folder from a file.
  """
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.dtype = "float32"
  # On NVIDIA's GPUs in bfloat16 "cudnn" is faster, see `models.attention`.
  config.attention = "auto"
  # "fast" is sooner on a CPU; images may differ by a grey level.
  config.kernels = "exact"
  # Your own prompts by group, for a model without a judge.
  config.prompts = ml_collections.ConfigDict()
  config.targets = ()
  # Metrics besides accuracy: names, or your own as package.module:name.
  config.metrics = ()
  # Rows of each group whose images the page shows.
  config.grid_rows = 6
  if size == "tiny":
    config.model = "shapes"
    config.judge = "shapes"
    config.rows_per_group = 50
    config.other_rows = 100
    config.batch_size = 50
    config.sampling = settings.plain(extensions.world("shapes").SAMPLING)
    return config
  config.model = MODELS[size]
  config.judge = ml_collections.config_dict.placeholder(str)
  config.rows_per_group = config.other_rows = 0
  config.batch_size = 4
  config.sampling = {
    "num_inference_steps": 50,
    "guidance_scale": 7.5,
    "sampler": ml_collections.config_dict.placeholder(str),
    # The noise of the published scripts: torch's CPU generator.
    "noise_source": "torch",
  }
  return config
