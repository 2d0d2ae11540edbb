"""The zip of an audit for a reviewer, with or without its prompts."""

import csv
import io
import json
import pathlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import IO, Any

from unlearning_jax import durable
from unlearning_jax.durable import JsonLines, replacing
from unlearning_jax.experiments.audit.settings import Settings
from unlearning_jax.record import Recorder, seal

# Keys and columns that are prompts, stand for them, or may quote them.
_PROMPTS = ("prompt", "prompts", "text", "words", "negative_prompt")
_WORDS = (
  *_PROMPTS, "ids", "embeds", "tokens", "gallery", "command", "error",
)  # fmt: skip
_PICTURES = (".png", ".jpg", ".webp")
_HIDDEN = "(redacted)"
_NEVER = (".zip", ".safetensors", ".part")


def write(record: Recorder, given: Settings):
  """Writes `audit.zip` as the settings ask for it."""
  shows = not (given.redact and given.subject["unsafe"])
  with replacing(record.path / "audit.zip") as file:
    pack(record.path, file, redact=given.redact, pictures=shows)


def pack(
  root: pathlib.Path,
  file: IO[bytes],
  *,
  redact: bool = False,
  pictures: bool = True,
):
  """Packs all that a reviewer needs to check a figure.

  Records, tables, pages and pictures are in it, weights are not.

  Args:
    root: the audit's folder.
    file: takes the zip.
    redact: leaves out the prompts, and the pages, which show them.
    pictures: whether pictures are in it.
  """
  hide = _Hiding(root) if redact else None
  sums: dict[str, tuple[int, int]] = {}
  with zipfile.ZipFile(file, "w") as archive:
    for path in _listed(root):
      name = path.relative_to(root).as_posix()
      picture = path.suffix in _PICTURES
      if path.name == seal.NAME or (picture and not pictures):
        continue
      data = path.read_bytes() if picture or not hide else hide.file(path)
      if data is not None:
        sums[name] = len(data), zlib.crc32(data)
        _add(archive, name, data)
    for path in _listed(root):
      if path.name == seal.NAME:
        # Of the files as they are in the zip.
        text = seal.remade(path, _below(sums, path.parent.relative_to(root)))
        _add(archive, path.relative_to(root).as_posix(), text.encode())


def _listed(root: pathlib.Path) -> Iterator[pathlib.Path]:
  """The files but weights, checkpoints to go on from, and a writer's own."""
  for path in sorted(root.rglob("*")):
    parts = path.relative_to(root).parts
    hidden = any(p.startswith(".") or p == "checkpoints" for p in parts)
    if path.is_file() and path.suffix not in _NEVER and not hidden:
      yield path


def _add(archive: zipfile.ZipFile, name: str, data: bytes):
  # A fixed date: the same audit gives the same file.
  archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)


def _below(
  sums: Mapping[str, tuple[int, int]], folder: pathlib.Path
) -> dict[str, tuple[int, int]]:
  if not folder.parts:
    return dict(sums)
  start = f"{folder.as_posix()}/"
  return {
    name.removeprefix(start): one
    for name, one in sums.items()
    if name.startswith(start)
  }


class _Hiding:
  """Takes prompts out of files: by key, and where another text quotes one."""

  def __init__(self, root: pathlib.Path):
    found: set[str] = set()
    for path in _listed(root):
      found |= {*_texts(_read(path))}
    # A prompt of one word is a word of other texts too, so only quotes go.
    quoted = {repr(one) for one in found} | {f'"{one}"' for one in found}
    several = {one for one in found if len(one.split()) > 1}
    several |= {repr(one)[1:-1] for one in several}
    self._known = sorted(quoted | several, key=len, reverse=True)

  def file(self, path: pathlib.Path) -> bytes | None:
    """A file without prompts; None for one that cannot do without them."""
    if path.suffix == ".json":
      return json.dumps(self._without(_read(path)), indent=2).encode()
    if path.suffix == ".jsonl":
      lines = (json.dumps(self._without(one)) + "\n" for one in _read(path))
      return "".join(lines).encode()
    return self._table(path).encode() if path.suffix == ".csv" else None

  def _table(self, path: pathlib.Path) -> str:
    file, rows = io.StringIO(), _read(path)
    writer = csv.DictWriter(
      file, [*rows[0]] if rows else (), lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(self._without(row) for row in rows)
    return file.getvalue()

  def _without(self, value: Any) -> Any:
    if isinstance(value, Mapping):
      return {
        self._without(key): _HIDDEN if key in _WORDS else self._without(inner)
        for key, inner in value.items()
      }
    if isinstance(value, list):
      return [self._without(one) for one in value]
    if isinstance(value, str):
      for one in self._known:
        value = value.replace(one, _HIDDEN)
    return value


def _read(path: pathlib.Path) -> Any:
  """The content of a file of records; () for another file."""
  if path.suffix == ".json":
    return durable.from_json(path.read_bytes(), f"{path}", object)
  if path.suffix == ".jsonl":
    return [*JsonLines(path).read()]
  if path.suffix == ".csv":
    with durable.explaining(path), path.open(newline="") as file:
      return [*csv.DictReader(file)]
  return ()


def _texts(value: Any, *, prompts: bool = False) -> Iterator[str]:
  """All prompts in a value."""
  if isinstance(value, Mapping):
    for key, inner in value.items():
      yield from _texts(inner, prompts=prompts or key in _PROMPTS)
  elif isinstance(value, list | tuple):
    for inner in value:
      yield from _texts(inner, prompts=prompts)
  elif prompts and isinstance(value, str) and value.strip():
    yield value
