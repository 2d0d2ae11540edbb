"""Captioned images as people keep them: folders, tables, archives, datasets."""

import csv
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from unlearning_jax import durable
from unlearning_jax.concepts import check_choice
from unlearning_jax.data import archives as archives_
from unlearning_jax.data.archives import IMAGES, captions_of
from unlearning_jax.data.examples import Example

_CAPTIONS = (".txt", ".caption")


def image_folder(
  folder: str | os.PathLike[str], *, caption: str = "text"
) -> list[Example]:
  """The captioned images of a folder, or of a WebDataset.

  In this order: `metadata.jsonl`, `.csv` or `.parquet`, the convention of
  Hugging Face's `imagefolder`, where each row has a `file_name`, relative to
  the folder, and a caption or a list of captions; `0.txt` (or `0.caption`)
  beside `0.png`, as kohya's and OneTrainer's datasets are, one caption a line;
  `*.tar` of WebDataset, whose samples have a `txt` or `json`.

  Args:
    folder: the folder, or one `.tar`.
    caption: the key or column of the captions.

  Raises:
    ValueError: there are no captions; a row has none, or its file is missing,
      outside the folder, or listed twice.
  """
  root = pathlib.Path(folder)
  for name in ("metadata.jsonl", "metadata.csv", "metadata.parquet"):
    if (root / name).is_file():
      return image_table(root / name, caption=caption)
  archives = [root] if root.is_file() else sorted(root.glob("*.tar"))
  if archives and not any(map(_captions_of_file, root.glob("*"))):
    return [
      example
      for archive in archives
      for example in archives_.read(archive, caption)
    ]
  return _beside(root)


def image_table(
  path: str | os.PathLike[str], *, caption: str = "text"
) -> list[Example]:
  """The captioned images that a table lists; errors as `image_folder`.

  Args:
    path: a `.csv`, `.jsonl` or `.parquet`. Files are relative to its folder.
    caption: the key or column of the captions.
  """
  table = pathlib.Path(path)
  if not table.is_file():
    raise ValueError(f"{table}: there is no such file")
  read = {".jsonl": _jsonl, ".parquet": _parquet}.get(table.suffix, _csv)
  return _examples(read(table), table.parent, caption, table)


def _beside(root: pathlib.Path) -> list[Example]:
  """Images with a file of captions beside each."""
  files = sorted(root.glob("*")) if root.is_dir() else []
  images = [file for file in files if file.suffix.lower() in IMAGES]
  if not images or not any(file.suffix in _CAPTIONS for file in files):
    nested = [f.name for f in files if f.is_dir() and any(f.glob("*.txt"))]
    raise ValueError(
      f"{root}: there is no metadata.jsonl, metadata.csv or metadata.parquet "
      "in it, no .txt beside each image and no .tar"
      + (f"; its folder {nested[0]} has such images: name it" if nested else "")
    )
  found = []
  for image in images:
    own = _captions_of_file(image)
    if not own:
      raise ValueError(
        f"{image}: has no {image.stem}.txt beside it; an image without a "
        "caption has an empty one"
      )
    if not _resolved(image, f"{root}").is_relative_to(root.resolve()):
      raise ValueError(f"{image}: leaves the folder")
    durable.check_plain(image)
    first, *others = _lines_of(own[0]) or [""]
    found.append(Example(image, first, tuple(others)))
  return found


def _lines_of(path: pathlib.Path) -> list[str]:
  """The lines of a text that are not blank."""
  try:
    text = path.read_text(encoding="utf-8-sig")
  except UnicodeDecodeError as error:
    raise ValueError(f"{path}: no text in UTF-8: {error}") from error
  # Not splitlines: a caption may hold other breaks, such as U+2028.
  return [line.strip() for line in text.split("\n") if line.strip()]


def _captions_of_file(image: pathlib.Path) -> list[pathlib.Path]:
  """The files of captions beside an image; [] for what is no image."""
  if image.suffix.lower() not in IMAGES:
    return []
  beside = [image.with_suffix(end) for end in _CAPTIONS]
  return [file for file in beside if file.is_file()]


def source_examples(
  source: Sequence[Mapping[str, Any]],
  *,
  image: str = "image",
  caption: str = "caption",
) -> list[Example]:
  """The rows of a `tfds` data source, or of anything with an index.

  Raises:
    ValueError: a row has no text and no texts in the feature `caption`.
  """
  found = []
  for i in range(len(source)):
    row = source[i]
    plain = {**row, caption: _plain(row.get(caption))}
    first, *others = captions_of(plain, caption, f"row {i}")
    found.append(Example(row[image], first, tuple(others)))
  return found


def prepared_dataset(
  folder: str | os.PathLike[str], split: str, *, caption: str = "caption"
) -> list[Example]:
  """All rows, decoded, of a split of a dataset that `tfds` has prepared.

  Images are the feature "image" or, without one, the only image feature.

  Args:
    folder: the dataset's own, as `data/shapes/tiny/1.0.0`.
    split: as "train" or "train[:250]".
    caption: the feature of the caption.

  Raises:
    ValueError: there is no such dataset or split; it has no index, or lacks
      these features.
  """
  # The import takes half a second, which other sources do not need.
  import tensorflow_datasets as tfds

  if not (pathlib.Path(folder) / "dataset_info.json").is_file():
    raise ValueError(
      f"{folder}: no dataset that tfds has prepared; give the folder that "
      "holds its dataset_info.json"
    )
  builder: Any = tfds.builder_from_directory(str(folder))
  features = dict(builder.info.features or {})
  kind = tfds.features.Image
  images = [name for name, held in features.items() if isinstance(held, kind)]
  alone = "image" not in features and len(images) == 1
  image = images[0] if alone else "image"
  for name in (image, caption):
    check_choice(f"{folder}: feature", name, features)
  try:
    source = builder.as_data_source(split=split)
  except (ValueError, NotImplementedError) as error:
    raise ValueError(f"{folder}, split {split!r}: {error}") from error
  return source_examples(source, image=image, caption=caption)


def _jsonl(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  # Bytes, because other breaks than these, such as U+2028, may be in a text.
  for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
    if line.strip(b"\xef\xbb\xbf \t\r"):
      yield durable.from_json(line, f"{path}, line {number}")


def _csv(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  try:
    with open(path, newline="", encoding="utf-8-sig") as file:
      yield from csv.DictReader(file, strict=True)
  except (csv.Error, UnicodeDecodeError) as error:
    raise ValueError(f"{path}: no CSV in UTF-8: {error}") from error


def _parquet(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  try:
    from pyarrow import parquet
  except ImportError as error:
    raise ValueError(
      f"{path}: needs pyarrow; pip install pyarrow, or write metadata.jsonl"
    ) from error
  try:
    yield from parquet.read_table(path).to_pylist()
  # pyarrow's errors are these, and Python's of what it found.
  except (
    ValueError, OSError, NotImplementedError, TypeError, LookupError,
    OverflowError,
  ) as error:  # fmt: skip
    raise ValueError(f"{path}: not a readable parquet file: {error}") from error


def _examples(
  rows: Iterable[Mapping[str, Any]],
  root: pathlib.Path,
  caption: str,
  where: pathlib.Path,
) -> list[Example]:
  found: dict[pathlib.Path, tuple[str, ...]] = {}
  inside = root.resolve()
  for number, row in enumerate(rows, 1):
    here = f"{where}, row {number}"
    name = row.get("file_name")
    if not isinstance(name, str) or not name.strip():
      keys = ", ".join(str(k) for k in row)[:200]
      raise ValueError(
        f"{here}: no 'file_name'; the row has {keys or 'nothing'}"
      )
    path = _resolved(root / name, here)
    if not path.is_relative_to(inside):
      raise ValueError(f"{here}: {name[:200]!r} leaves the folder")
    if not os.path.isfile(path):
      raise ValueError(f"{here}: there is no file {str(path)[:200]}")
    if path in found:
      raise ValueError(f"{here}: {name[:200]!r} is listed twice")
    found[path] = captions_of(row, caption, here)
  if not found:
    raise ValueError(f"{where}: it lists no images")
  return [Example(p, first, tuple(rest)) for p, (first, *rest) in found.items()]


def _resolved(path: pathlib.Path, where: str) -> pathlib.Path:
  """The file that a name stands for.

  Raises:
    ValueError: it can stand for none.
  """
  try:
    return path.resolve()
  # A zero in it, a link to itself, letters that no name can have.
  except (ValueError, OSError, RuntimeError) as error:
    raise ValueError(f"{where}: {str(path)[:80]!r}: {error}") from error


def _plain(value: Any) -> Any:
  """A feature's text or texts without numpy and bytes."""
  if isinstance(value, np.ndarray):
    value = value.tolist()
  if isinstance(value, list | tuple):
    return [_plain(one) for one in value]
  return value.decode() if isinstance(value, bytes) else value
