"""Model folders from the Hugging Face hub."""

import pathlib
import re

from unlearning_jax.convert import families
from unlearning_jax.convert.folder import (
  COMPONENTS,
  MARK,
  find_weights,
  weight_names,
)

_ID = re.compile(r"(?P<id>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?")


def is_hub_id(name: str) -> bool:
  """Whether `name` looks like `owner/name` or `owner/name@revision`."""
  return _ID.fullmatch(name) is not None


def fetch(name: str, variant: str | None = None) -> pathlib.Path:
  """Downloads a model folder, or finds it in the hub's own cache.

  Pickled weights are downloaded only if there are no others.

  Args:
    name: `owner/name`, optionally `@revision`.
    variant: as in `folder.load_folder`.

  Raises:
    ValueError: the hub cannot be reached, or has no such model, or the model
      is of another family.
  """
  match = _ID.fullmatch(name)
  if match is None:
    raise ValueError(
      f"{name!r} is not a hub id; allowed: owner/name[@revision]"
    )
  texts = [MARK, "scheduler/*", "tokenizer/*", "*/config.json"]
  # Gigabytes of a model that cannot be used are not downloaded.
  families.check_folder(_download(match, texts))
  for kind in ("safetensors", "bin"):
    files = [n for n in weight_names(variant) if f".{kind}" in n]
    files += [re.sub(rf"\.{kind}$", f"-*.{kind}", n) for n in files]
    wanted = [f"{component}/{n}" for component in COMPONENTS for n in files]
    folder = _download(match, texts + wanted)
    if kind == "bin" or _complete(folder, variant):
      return folder
  raise AssertionError("unreachable")


def _download(match: re.Match[str], patterns: list[str]) -> pathlib.Path:
  # Imported here: it takes a second, and most runs never need it.
  import huggingface_hub

  try:
    return pathlib.Path(
      huggingface_hub.snapshot_download(
        match["id"], revision=match["revision"], allow_patterns=patterns
      )
    )
  # The hub raises OSErrors, but the network client below it does not.
  except Exception as error:
    raise ValueError(
      f"{match[0]!r} is no file or folder here, and the hub did not deliver it "
      f"({type(error).__name__}: {error}). On a machine with network run "
      f"`hf download {match['id']} --local-dir <folder>`, copy the folder "
      "here and name it instead"
    ) from error


def _complete(folder: pathlib.Path, variant: str | None) -> bool:
  try:
    for component in COMPONENTS:
      find_weights(folder / component, variant)
  except ValueError:
    return False
  return True
