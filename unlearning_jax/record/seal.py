"""The seal of a finished run: size and checksum of the files it rests on.

`DONE` holds the seal, so whoever reads the run later notices a flipped bit, a
cut file or a lost one. It is no protection against changes on purpose. A run
that ended before there were seals has an empty `DONE`, and is taken as it is.
"""

import json
import pathlib
import zlib
from collections.abc import Mapping, Sequence

from unlearning_jax import durable
from unlearning_jax.durable import DamagedError

NAME = "DONE"
# What is written once. Pages and tables have no seal: every start of a finished
# run writes them again.
_FILES = (
  "config.json",
  "results*.jsonl",
  "*.safetensors",
  "guidance.json",
  "steps/*.safetensors",
  "edits/*.safetensors",
)
# What a start of a finished run may write again; see `lasting`.
_AGAIN = (
  "provenance.json",
  "summary.json",
  "metrics.jsonl",
  "*.probe.json",
  "edits/*.probe.json",
  "metrics/*.safetensors",
  "statistics.npz",
)
_IMAGES = "images/**/*.png"
_CHUNK = 1 << 22


def made(
  folder: pathlib.Path, patterns: Sequence[str] = (*_FILES, *_AGAIN, _IMAGES)
) -> str:
  """The content of `DONE` for a run that has just ended.

  Args:
    folder: the run's folder.
    patterns: of the files that are sealed.
  """
  found = {
    str(file.relative_to(folder)): [size, crc]
    for pattern in patterns
    for file in sorted(folder.glob(pattern))
    if file.is_file()
    for size, crc in [_sum(file)]
  }
  return json.dumps(found, indent=0)


def put(folder: pathlib.Path, *patterns: str):
  """Seals a folder that is no run by itself, such as an edit of many.

  Args:
    folder: where `DONE` goes.
    patterns: of the files that are sealed; those of a run if none is named.
  """
  text = made(folder, patterns) if patterns else made(folder)
  with durable.replacing(folder / NAME) as file:
    file.write(text.encode())


def remade(file: pathlib.Path, sums: Mapping[str, tuple[int, int]]) -> str:
  """The content of `DONE` for a copy that lacks or changes files.

  Args:
    file: the `DONE` of the run.
    sums: name -> size and CRC-32, of the copy's files.
  """
  kept = {name: sums[name] for name in entries(file) if name in sums}
  return json.dumps(kept, indent=0)


def lasting(folder: pathlib.Path) -> str:
  """The content of `DONE` without the files that a start writes again.

  A start puts it in place before it writes the first of them. So a start that
  is killed leaves no seal that its files do not fit.
  """
  kept = {
    name: one
    for name, one in entries(folder / NAME).items()
    if not any(pathlib.PurePath(name).match(again) for again in _AGAIN)
  }
  return json.dumps(kept, indent=0) if kept else ""


def check(folder: pathlib.Path, *, images: bool = False):
  """Compares a finished run's files with its seal.

  Rows that were added later do not count: of `results.jsonl` the first bytes
  are compared.

  Args:
    folder: the run's folder; one without a seal passes.
    images: compares the images too, which may be many.

  Raises:
    DamagedError: a file is missing or differs; the message names it.
  """
  for name, was in entries(folder / NAME).items():
    if images or not name.startswith("images/"):
      _check_still(folder, name, was)


def _check_still(folder: pathlib.Path, name: str, was: tuple[int, int]):
  """As `_check`, unless a start has taken the file off the seal meanwhile."""
  try:
    _check(folder, name, was)
  except DamagedError:
    if entries(folder / NAME).get(name) == was:
      raise


def _check(folder: pathlib.Path, name: str, was: tuple[int, int]):
  path = folder / name
  why = differs(path, was)
  if not why:
    return
  remedy = f"bring back a copy, or delete {folder} and run its command again"
  # The first is made of the rows, the second of the edit. A folder that is no
  # run, see `put`, may hold the runs of others.
  again = name == "summary.json" or name.endswith(".probe.json")
  if again or "config.json" not in entries(folder / NAME):
    remedy = f"delete {path} and {folder / NAME}, and run the command again"
  raise DamagedError(f"{path} {why}; {remedy}")


def check_file(path: pathlib.Path):
  """Compares one file with the seal of the run that it belongs to, if any.

  Raises:
    DamagedError: it is not what the run wrote.
  """
  for folder in path.absolute().parents[:2]:
    name = path.absolute().relative_to(folder).as_posix()
    if was := entries(folder / NAME).get(name):
      _check_still(folder, name, was)


def differs(path: pathlib.Path, was: tuple[int, int]) -> str:
  """In which way a file is not the one of a seal's entry; "" if it is."""
  if not path.is_file():
    return "is missing"
  same = _sum(path, was[0] if _grows(path.name) else None) == was
  return "" if same else "is damaged: it is not what was written"


def entries(file: pathlib.Path) -> dict[str, tuple[int, int]]:
  """The entries of a seal: name -> size and checksum; empty without a seal.

  Raises:
    DamagedError: the seal itself is damaged.
  """
  try:
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    found = durable.from_json(text, f"{file}") if text else {}
    if any(".." in name or name.startswith("/") for name in found):
      raise ValueError("a file outside of the run")
    return {name: (int(n), int(crc)) for name, (n, crc) in found.items()}
  except (ValueError, TypeError, AttributeError, OverflowError) as error:
    raise DamagedError(
      f"{file} is damaged; delete it and start again: a run ends anew, a "
      "model is read as it is"
    ) from error


def _grows(name: str) -> bool:
  return name.endswith(".jsonl")


def _sum(file: pathlib.Path, size: int | None = None) -> tuple[int, int]:
  """Size and CRC-32 of a file, or of its first bytes."""
  left = file.stat().st_size if size is None else size
  read = crc = 0
  with file.open("rb") as stream:
    while chunk := stream.read(min(_CHUNK, left - read)):
      crc, read = zlib.crc32(chunk, crc), read + len(chunk)
  return read, crc
