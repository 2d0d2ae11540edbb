"""What a run's folder is bound to: the config that made its rows."""

import json
import os
import pathlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from unlearning_jax import durable, renamed
from unlearning_jax.durable import to_json
from unlearning_jax.record import seal


def check(
  path: str | os.PathLike[str],
  config: Any,
  free: Sequence[str] = (),
  defaults: Mapping[str, Any] = MappingProxyType({}),
):
  """Raises what `Workdir` would of these arguments, and writes nothing.

  Raises:
    ValueError, DamagedError: as `Workdir`.
  """
  folder = folder_of(path)
  if folder.is_dir():
    seal.check(folder)
    is_new(folder, plain(config), free, plain(dict(defaults)))
  above = next(p for p in (folder, *folder.parents) if p.exists())
  if not (above.is_dir() and os.access(above, os.W_OK)):
    raise ValueError(f"workdir: {folder} cannot be written: {above} cannot")


def folder_of(path: str | os.PathLike[str]) -> pathlib.Path:
  """The absolute path of a folder on this machine.

  Raises:
    ValueError: it is empty, or the address of something elsewhere.
  """
  text = os.fspath(path)
  if not text or "://" in text:
    raise ValueError(
      f"workdir: {text!r} is no folder on this machine; use a local or mounted "
      "path"
    )
  return pathlib.Path(text).expanduser().absolute()


def writable(path: str | os.PathLike[str]) -> pathlib.Path:
  """The folder of a run, which is made if it does not exist.

  Raises:
    ValueError: as `folder_of`, or nothing can be written in it.
  """
  folder = folder_of(path)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder, prefix=".") as file:
      file.write(b"probe")
  except OSError as error:
    raise ValueError(
      f"workdir: {folder} cannot be written: {error}; mend that, or name "
      "another folder"
    ) from error
  return folder


def is_new(
  folder: pathlib.Path,
  new: Mapping[str, Any],
  free: Sequence[str] = (),
  defaults: Mapping[str, Any] = MappingProxyType({}),
  *,
  has_peers: bool = False,
  is_writer: bool = True,
) -> bool:
  """Whether a folder is not bound yet, and shall be to this config.

  Args:
    folder: of the run; it exists.
    new: the config's plain values.
    free: dotted keys that no row depends on.
    defaults: values of keys that an older run's config may lack.
    has_peers: whether other processes write to the folder too.
    is_writer: whether this process writes the shared files.

  Raises:
    ValueError: the folder holds files but no run, or rows that another config
      made; lists what differs.
  """
  file = folder / "config.json"
  if not file.exists():
    if (folder / "results.jsonl").exists():
      raise ValueError(
        f"workdir: {folder} holds results.jsonl but no config.json, so "
        "nobody knows what made those rows; use another folder"
      )
    foreign = [
      entry.name
      for entry in folder.iterdir()
      if not _may_stand(entry.name, has_peers)
    ]
    if foreign and is_writer:
      raise ValueError(
        f"workdir: {folder} holds no run, but {len(foreign)} other files "
        f"such as {min(foreign)}; name a new folder or an empty one"
      )
    return True
  old = renamed.config(durable.read_json(file))
  # config.json keeps the first start's free keys; provenance.json has the
  # command of every start.
  old, bound = _trimmed(old, new, defaults), _trimmed(new, old, defaults)
  changes = [
    change
    for change in differences(old, bound)
    if not _is_free(change.partition(":")[0], free)
  ]
  made = {e.name for e in folder.iterdir() if not e.name.startswith(".")}
  if not changes or made <= {"config.json", "provenance.json"}:
    # An earlier start that recorded nothing loses nothing.
    return bool(changes)
  if old.keys() - bound.keys() and bound.keys() - old.keys():
    raise ValueError(
      f"workdir: {folder} holds a run of another kind: its config has "
      f"{', '.join(sorted(old.keys() - bound.keys()))}, this one's "
      f"{', '.join(sorted(bound.keys() - old.keys()))}; use another folder"
    )
  raise ValueError(
    f"workdir: {folder} holds a run with another config; resume with "
    "the same one or use another folder:\n  " + "\n  ".join(changes)
  )


def plain(config: Any) -> dict[str, Any]:
  """A config, a `ConfigDict` or a dict, as JSON would give it back."""
  if hasattr(config, "to_dict"):
    config = config.to_dict()
  return json.loads(to_json(config, "config"))


def _may_stand(name: str, has_peers: bool) -> bool:
  """Whether a file may lie in the folder of a run before process 0 opens it."""
  # The other processes do not wait for process 0, so their rows may be first.
  if has_peers and (
    re.fullmatch(r"results-\d+\.jsonl", name) or name == "images"
  ):
    return True
  # A scheduler writes logs before it starts the run. A cell that failed before
  # its record was opened left the reason.
  logs = (".log", ".out", ".err")
  return name.startswith(".") or name.endswith(logs) or name == "failed.txt"


def _is_free(key: str, free: Sequence[str]) -> bool:
  """Whether a dotted key, or a mapping that holds it, may change."""
  names = key.partition("[")[0].split(".")
  return any(
    len(one) <= len(names)
    and all(part in ("*", name) for part, name in zip(one, names, strict=False))
    for one in (text.split(".") for text in free)
  )


def differences(old: object, new: object, key: str = "") -> list[str]:
  """Lines `key: old -> new` for what differs between two plain values."""
  if old == new:
    return []
  if isinstance(old, dict) and isinstance(new, dict):
    found = []
    for k in sorted(old.keys() | new.keys()):
      name = f"{key}.{k}" if key else k
      absent = "(absent)"
      found += differences(old.get(k, absent), new.get(k, absent), name)
    return found
  if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
    # Of long lists only the entries that differ can be read.
    return [
      change
      for i, (was, now) in enumerate(zip(old, new, strict=True))
      for change in differences(was, now, f"{key}[{i}]")
    ]
  return [f"{key}: {_short(old)} -> {_short(new)}"]


def _trimmed(
  config: Mapping[str, Any], other: Any, defaults: Mapping[str, Any]
) -> dict[str, Any]:
  """A config without defaults that the other lacks, at any depth."""
  found = {}
  for key, value in config.items():
    inner = other.get(key) if isinstance(other, Mapping) else None
    if key in defaults and value == defaults[key] and inner is None:
      continue
    if isinstance(value, Mapping):
      value = _trimmed(value, inner, defaults)
    found[key] = value
  return found


def _short(value: object, most: int = 100) -> str:
  text = repr(value)
  return text if len(text) <= most else f"{text[:most]}... ({len(text)} long)"
