"""Damages small files, as disks, hands and other tools do; nothing is aimed.

`damaged` takes files and a list of damages, four plain numbers or names each,
so that hypothesis can draw them and make those that matter small.
"""

import csv
import io
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

# What stands where a file was: a pipe, a folder, a link to itself.
PIPE, FOLDER, LOOP = "pipe", "folder", "loop"
Files = dict[str, bytes | str]
Damage = tuple[str, int, int, int]
_SCALE = 1 << 16
_SIZES = (0, 1, 255, 2**15, 2**31 - 1, 2**32, 2**40, 2**63 - 1)
VALUES: tuple[Any, ...] = (
  None, True, 0, -1, 1, 7, 2**31, 2**40, 2**64, 10**40, 0.5, -1e308, 1e308,
  float("nan"), float("inf"), "", "a", "nan", "1e999", "-1", "../a",
  "/dev/zero",
  "\u2028", "\x00", "\ud800", "a" * 3000, "9" * 5000, [], {}, [[]], [1, 2, 3],
  ["a"], {"a": 1}, [None], {"": {}},
)  # fmt: skip
_TOKENS = (
  b"\x00", b"\xff" * 8, b"\n", b",", b'"', b"\xef\xbb\xbf", "\u2028".encode(),
  b"[" * 20000, b"{", b"NaN", b"1e999", b"9" * 5000, b"-1", b"../",
  b"\xed\xa0\x80", b".", b"#",
)  # fmt: skip


def damaged(files: Files, damages: list[Damage]) -> Files:
  """Files after one damage and the next; those that do not apply do nothing.

  Args:
    files: name -> content.
    damages: the kind; which file; where in it, in 65536ths; with what.
  """
  found = dict(files)
  for kind, which, where, what in damages:
    names = sorted(found)
    if names:
      _KINDS[kind](found, names[which % len(names)], where % _SCALE, what)
  return found


def _of_bytes(change: Callable[[bytes, int, int], bytes]) -> Callable:
  """A damage of one file's bytes, at a place in them."""

  def damage(files: Files, name: str, where: int, what: int):
    data = files[name]
    if isinstance(data, bytes) and data:
      files[name] = change(data, where * len(data) // _SCALE, what)

  return damage


def _erase(data: bytes, at: int, what: int) -> bytes:
  return data[:at] + data[at + 1 + what % 40 :]


def _double(data: bytes, at: int, what: int) -> bytes:
  part = data[at : at + 1 + what % 400]
  return data[:at] + part + data[at:]


def _size(data: bytes, at: int, what: int) -> bytes:
  """A size of one, two, four or eight bytes that lies."""
  wide = (8, 4, 2, 1)[what % 4]
  value = _SIZES[what // 4 % len(_SIZES)] % (1 << 8 * wide)
  return data[:at] + value.to_bytes(wide, "little") + data[at + wide :]


def _number(data: bytes, at: int, what: int) -> bytes:
  """Another text for the next number after a place."""
  found = re.compile(rb"-?\d[\d.e+-]*").search(data, at)
  if not found:
    return data
  new = str(VALUES[what % len(VALUES)]).encode("utf-8", "replace")
  return data[: found.start()] + new + data[found.end() :]


def _word(data: bytes, at: int, what: int) -> bytes:
  """One word of the file in the place of another."""
  words = [*re.finditer(rb"[A-Za-z_][\w./]{2,40}", data)]
  if not words:
    return data
  one, two = words[at * len(words) // len(data)], words[what % len(words)]
  return data[: one.start()] + two[0] + data[one.end() :]


def _cell(data: bytes, at: int, what: int) -> bytes:
  """Another field in a table."""
  try:
    rows = [*csv.reader(io.StringIO(data.decode(), newline=""))]
  except (csv.Error, UnicodeDecodeError):
    return data
  places = [(i, j) for i, row in enumerate(rows) for j in range(len(row))]
  if not places:
    return data
  i, j = places[at * len(places) // len(data)]
  rows[i][j] = str(VALUES[what % len(VALUES)])
  file = io.StringIO(newline="")
  csv.writer(file).writerows(rows)
  return file.getvalue().encode("utf-8", "replace")


# --- JSON, wherever it stands ---


def _json_of(data: bytes) -> tuple[Any, Callable[[str], bytes]] | None:
  """The JSON in a file, and how it is put back: whole, or a header."""
  if data[8:9] == b"{":
    size = int.from_bytes(data[:8], "little")
    parts = data[8 : 8 + size], data[8 + size :]

    def headed(text: str) -> bytes:
      head = text.encode("utf-8", "replace")
      return len(head).to_bytes(8, "little") + head + parts[1]

    pair = parts[0], headed
  else:
    pair = data, lambda text: text.encode("utf-8", "replace")
  try:
    return json.loads(pair[0]), pair[1]
  except (ValueError, RecursionError):
    return None


def _inside(value: Any) -> Any:
  """JSON that a text holds; None for any other value."""
  if isinstance(value, str) and value[:1] in ("{", "["):
    try:
      return json.loads(value)
    except (ValueError, RecursionError):
      return None
  return None


def _places(value: Any) -> Iterator[tuple[Any, ...]]:
  """Paths to all that a JSON value holds, through texts that hold JSON."""
  yield ()
  inner = _inside(value)
  if inner is not None:
    yield from (("text", *rest) for rest in _places(inner))
  elif isinstance(value, dict):
    for key in value:
      yield from ((key, *rest) for rest in _places(value[key]))
  elif isinstance(value, list):
    # The ends of a long list are as good as all of it.
    for i in {*range(min(len(value), 3)), *range(len(value))[-1:]}:
      yield from ((i, *rest) for rest in _places(value[i]))


def _at(value: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
  """A value with a change at a path."""
  if not path:
    return change(value)
  if (inner := _inside(value)) is not None:
    return json.dumps(_at(inner, path[1:], change))
  copy = value.copy()
  copy[path[0]] = _at(value[path[0]], path[1:], change)
  return copy


def _exchange(value: Any, what: int) -> Any:
  return VALUES[what % len(VALUES)]


def _drop(value: Any, what: int) -> Any:
  """One entry less."""
  if isinstance(value, dict) and value:
    gone = [*value][what % len(value)]
    return {k: v for k, v in value.items() if k != gone}
  return value[:-1] if isinstance(value, list | str) else value


def _rename(value: Any, what: int) -> Any:
  """One key by another name."""
  if not isinstance(value, dict) or not value:
    return value
  old = [*value][what % len(value)]
  new = str(VALUES[what // 7 % len(VALUES)])
  return {new if k == old else k: v for k, v in value.items()}


def _wrap(value: Any, what: int) -> Any:
  """The same one level deeper."""
  return [value] if what % 2 else {"a": value}


def _twice(value: Any, what: int) -> Any:
  """A key or an entry that stands twice."""
  if isinstance(value, list):
    return value + value[:2]
  if isinstance(value, dict) and value:
    key = [*value][what % len(value)]
    return value | {f"{key} ": value[key]}
  return value


def _of_json(change: Callable[[Any, int], Any]) -> Callable:
  """A damage of the JSON in a file, or of a line of JSON."""

  def damage(files: Files, name: str, where: int, what: int):
    data = files[name]
    if not isinstance(data, bytes):
      return
    lines, at = [data], 0
    if name.endswith(".jsonl"):
      lines = data.split(b"\n")
      at = what % len(lines)
    found = _json_of(lines[at])
    if found is None:
      return
    value, put = found
    paths = [*_places(value)]
    path = paths[where * len(paths) // _SCALE]
    new = _at(value, path, lambda inner: change(inner, what))
    lines[at] = put(json.dumps(new))
    files[name] = b"\n".join(lines)

  return damage


# --- Archives and pictures, whose checksums are made anew ---


def _of_archive(change: Callable[[bytes, int, int], bytes]) -> Callable:
  """A damage inside an archive that is whole otherwise."""

  def damage(files: Files, name: str, where: int, what: int):
    data = files[name]
    if not isinstance(data, bytes) or data[:4] != b"PK\x03\x04":
      return
    try:
      with zipfile.ZipFile(io.BytesIO(data)) as archive:
        held = {n: archive.read(n) for n in archive.namelist()}
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
      return
    inner = [n for n in held if held[n]]
    # The pickle or the header is more worth than the numbers.
    one = min(inner, key=len) if what % 2 else inner[what % len(inner)]
    at = where * len(held[one]) // _SCALE
    held[one] = change(held[one], at, what)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
      for n, content in held.items():
        archive.writestr(f"../{n}" if what % 97 == 5 else n, content)
    files[name] = out.getvalue()

  return damage


def _picture(data: bytes, at: int, what: int) -> bytes:
  """Another size, depth or kind in a PNG's head."""
  if data[:4] != b"\x89PNG" or len(data) < 33:
    return data
  head = bytearray(data[12:29])
  place = 4 + at % 13
  head[place] = _SIZES[what % len(_SIZES)] % 256 if what % 3 else what % 256
  return data[:12] + head + zlib.crc32(head).to_bytes(4, "big") + data[33:]


def _flip(data: bytes, at: int, what: int) -> bytes:
  return data[:at] + bytes([data[at] ^ (1 << what % 8)]) + data[at + 1 :]


def _insert(data: bytes, at: int, what: int) -> bytes:
  return data[:at] + _TOKENS[what % len(_TOKENS)] + data[at:]


def _lose(files: Files, name: str, where: int, what: int):
  del files[name]


def _swap(files: Files, name: str, where: int, what: int):
  other = sorted(files)[what % len(files)]
  files[name], files[other] = files[other], files[name]


def _instead(files: Files, name: str, where: int, what: int):
  files[name] = (PIPE, FOLDER, LOOP, b"")[what % 4]


_KINDS: dict[str, Callable[[Files, str, int, int], None]] = {
  "cut": _of_bytes(lambda data, at, what: data[:at]),
  "flip": _of_bytes(_flip),
  "insert": _of_bytes(_insert),
  "erase": _of_bytes(_erase),
  "double": _of_bytes(_double),
  "size": _of_bytes(_size),
  "number": _of_bytes(_number),
  "word": _of_bytes(_word),
  "cell": _of_bytes(_cell),
  "picture": _of_bytes(_picture),
  "exchange": _of_json(_exchange),
  "drop": _of_json(_drop),
  "rename": _of_json(_rename),
  "wrap": _of_json(_wrap),
  "twice": _of_json(_twice),
  "inner flip": _of_archive(_flip),
  "inner size": _of_archive(_size),
  "inner number": _of_archive(_number),
  "inner word": _of_archive(_word),
  "inner cut": _of_archive(lambda data, at, what: data[:at]),
  "lose": _lose,
  "swap": _swap,
  "instead": _instead,
}
KINDS = tuple(_KINDS)
