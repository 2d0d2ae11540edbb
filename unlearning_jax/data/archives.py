"""WebDataset archives: a sample is the files of one name in a tar.

  000001.jpg  000001.txt        the image, and its caption
  000002.png  000002.json       {"text": the caption, or a list of captions}

Where a sample has both, as img2dataset writes them, the txt is its caption.
Nothing is unpacked: images stay in memory as their encoded bytes.
"""

import pathlib
import tarfile
from collections.abc import Mapping
from typing import Any

from unlearning_jax import durable
from unlearning_jax.data.examples import Example

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
# A caption is a sentence.
_LONGEST = 1 << 20


def read(path: pathlib.Path, caption: str) -> list[Example]:
  """The samples of an archive, in its order.

  Args:
    path: the `.tar`, not compressed.
    caption: the key of captions in a sample's `json`.

  Raises:
    ValueError: the archive is damaged; a sample lacks its image or caption.
  """
  images: dict[str, bytes] = {}
  texts: dict[str, tuple[str, ...]] = {}
  rows: dict[str, tuple[str, bytes]] = {}
  durable.check_plain(path)
  size = path.stat().st_size
  try:
    with tarfile.open(path, "r:") as archive:
      for member in archive:
        folder, _, name = member.name.rpartition("/")
        key, _, end = name.partition(".")
        key, end = f"{folder}/{key}", f".{end.lower()}"
        if not member.isfile() or end not in (*IMAGES, ".txt", ".json"):
          continue
        kept = {".txt": texts, ".json": rows}.get(end, images)
        here = f"{path}, {member.name}"
        if key in kept:
          raise ValueError(f"{here}: the sample has another one")
        if kept is not images and member.size > _LONGEST:
          raise ValueError(f"{here}: is no caption: {member.size} bytes")
        # A small archive of either kind could fill the memory.
        if member.issparse() or member.size > size:
          raise ValueError(
            f"{here}: is sparse, or larger than the archive; pack the files as "
            "they are"
          )
        held = archive.extractfile(member)
        raw = held.read() if held else b""
        if kept is images:
          images[key] = raw
        elif end == ".txt":
          texts[key] = (raw.decode("utf-8-sig").strip(),)
        else:
          rows[key] = here, raw
    for key, (here, raw) in rows.items():
      if key not in texts:
        texts[key] = captions_of(durable.from_json(raw, here), caption, here)
  # Python's own errors come from heads that hold no sizes and dates.
  except (
    tarfile.TarError, UnicodeDecodeError, OverflowError, EOFError, OSError,
    RecursionError,
  ) as error:  # fmt: skip
    raise ValueError(f"{path}: not a readable WebDataset: {error}") from error
  alone = sorted(images.keys() ^ texts.keys())
  if alone or not images:
    lacks = "a caption" if alone and alone[0] in images else "an image"
    raise ValueError(
      f"{path}: "
      + (
        f"the sample {alone[0].lstrip('/')!r} lacks {lacks}"
        if alone
        else "it holds no sample of an image and a text"
      )
    )
  return [
    Example(image, texts[key][0], texts[key][1:])
    for key, image in images.items()
  ]


def captions_of(
  row: Mapping[str, Any], key: str, where: str
) -> tuple[str, ...]:
  """A row's caption, or its list of captions; "" is an empty caption.

  Raises:
    ValueError: the row has none, naming the column that may hold it; or it is
      no text in Unicode.
  """
  value = row.get(key) if isinstance(row, Mapping) else None
  values = [value] if isinstance(value, str) else value
  if (
    isinstance(values, list | tuple)
    and values
    and all(isinstance(one, str) for one in values)
  ):
    for one in values:
      _check_unicode(one, where)
    return tuple(values)
  keys = list(map(str, row)) if isinstance(row, Mapping) else []
  near = [k for k in ("caption", "text", "prompt") if k in keys and k != key]
  raise ValueError(
    f"{where}: no {key!r}; the row has {', '.join(keys)[:200] or 'nothing'}"
    + (f"; name it: --config.data.caption={near[0]}" if near else "")
    + (
      f"; {key!r} is {repr(value)[:200]}, no text and no list of texts"
      if value is not None
      else ""
    )
  )


def _check_unicode(text: str, where: str):
  """JSON can hold half of a character, as one surrogate, which no file can."""
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise ValueError(
      f"{where}: the caption {text[:80]!r} is no text in Unicode: "
      f"{error.reason}"
    ) from error
