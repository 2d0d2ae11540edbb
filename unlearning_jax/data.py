"""Training data: captioned images, and batches that are functions of a step."""

import csv
import dataclasses
import hashlib
import io
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import PIL.Image
import PIL.ImageOps
from jaxtyping import Shaped, UInt8

from unlearning_jax.concepts import check_choice

Rows = TypeVar("Rows", list, np.ndarray)


@dataclasses.dataclass(frozen=True)
class Batches:
  """Shuffled batches of rows in memory; `batches[step]` needs no earlier step.

  Rows are shuffled by (seed, epoch). A last, short batch of an epoch is left
  out.

  Attributes:
    arrays: name to array of this process's rows, see `share`; all have the same
      number of rows.
    batch_size: rows per batch of this process.
    seed: of the shuffling.
  """

  arrays: Mapping[str, Shaped[np.ndarray, "n ..."]]
  batch_size: int
  seed: int = 0

  def __post_init__(self):
    sizes = {name: len(array) for name, array in self.arrays.items()}
    if not sizes:
      raise ValueError("data: no arrays")
    if len(set(sizes.values())) != 1:
      raise ValueError(f"data: arrays of unequal length: {sizes}")
    if not 1 <= self.batch_size <= self._rows:
      raise ValueError(
        f"batch_size={self.batch_size}: must be between 1 and the "
        f"{self._rows} rows of each process"
      )

  @property
  def _rows(self) -> int:
    return len(next(iter(self.arrays.values())))

  @property
  def steps_per_epoch(self) -> int:
    """Batches in one pass over this process's rows."""
    return self._rows // self.batch_size

  def __getitem__(self, step: int) -> dict[str, Shaped[np.ndarray, "b ..."]]:
    epoch, position = divmod(step, self.steps_per_epoch)
    order = np.random.default_rng((self.seed, epoch)).permutation(self._rows)
    rows = order[position * self.batch_size :][: self.batch_size]
    return {name: array[rows] for name, array in self.arrays.items()}


class Example(NamedTuple):
  """A captioned image: a file, its encoded bytes, or its pixels."""

  image: pathlib.Path | bytes | np.ndarray
  caption: str


def image_folder(
  folder: str | os.PathLike[str], *, caption: str = "text"
) -> list[Example]:
  """The captioned images of a folder, as `metadata.jsonl` or `.csv` lists them.

  This is the convention of Hugging Face's `imagefolder`: each row has a
  `file_name`, relative to the folder, and a caption.

  Args:
    caption: the key or column of the captions.

  Raises:
    ValueError: there is no metadata; a row has no caption, or its file is
      missing, outside the folder, or listed twice.
  """
  root = pathlib.Path(folder)
  for name, read in (("metadata.jsonl", _jsonl), ("metadata.csv", _csv)):
    if (root / name).is_file():
      return _examples(read(root / name), root, caption, root / name)
  raise ValueError(f"{root}: there is no metadata.jsonl or metadata.csv in it")


def image_table(
  path: str | os.PathLike[str], *, caption: str = "text"
) -> list[Example]:
  """The captioned images that a CSV lists; errors as `image_folder`.

  Files are relative to the CSV's own folder.
  """
  table = pathlib.Path(path)
  if not table.is_file():
    raise ValueError(f"{table}: there is no such file")
  return _examples(_csv(table), table.parent, caption, table)


def source_examples(
  source: Sequence[Mapping[str, Any]],
  *,
  image: str = "image",
  caption: str = "caption",
) -> list[Example]:
  """The rows of a `tfds` data source, or of anything with an index."""
  rows = (source[i] for i in range(len(source)))
  return [Example(row[image], _text(row[caption])) for row in rows]


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


def share(rows: Rows, process_index: int, process_count: int) -> Rows:
  """Every n-th of a list or array of rows, and as many for every process.

  Rows are shared before shuffling, so that no process trains on or encodes
  another's. (All processes read all files once before, for `fingerprint`.)

  Raises:
    ValueError: there are fewer rows than processes.
  """
  count = len(rows) // process_count
  if not count:
    raise ValueError(
      f"data: {len(rows)} rows for {process_count} processes; every process "
      "needs a row"
    )
  return rows[process_index::process_count][:count]


def fingerprint(examples: Sequence[Example]) -> str:
  """SHA-256 of captions and images, or the bytes of their files, in order.

  It does not depend on files' names and times: a copy of a folder is the same
  data, and a folder with a replaced image is not. Every process reads every
  file for it, because each must refuse data other than it began with.
  """
  total = hashlib.sha256()
  for image, caption in examples:
    if isinstance(image, pathlib.Path):
      with image.open("rb") as file:
        held = hashlib.file_digest(file, "sha256")
    elif isinstance(image, bytes):
      held = hashlib.sha256(image)
    else:
      held = hashlib.sha256(repr(image.shape).encode() + image.tobytes())
    total.update(hashlib.sha256(caption.encode()).digest() + held.digest())
  return total.hexdigest()


def read_images(
  examples: Sequence[Example], size: tuple[int, int]
) -> UInt8[np.ndarray, "n h w 3"]:
  """Scales images to cover `size`, (height, width), and crops their center.

  Raises:
    ValueError: a file is not an image.
  """
  out = np.empty((len(examples), *size, 3), np.uint8)
  for i, example in enumerate(examples):
    out[i] = _fit(_open(example.image), size)
  return out


def _open(image: pathlib.Path | bytes | np.ndarray) -> PIL.Image.Image:
  if isinstance(image, np.ndarray):
    return PIL.Image.fromarray(image)
  try:
    file = io.BytesIO(image) if isinstance(image, bytes) else image
    with PIL.Image.open(file) as opened:
      # Cameras store the orientation in EXIF; transparency becomes black.
      return PIL.ImageOps.exif_transpose(opened).convert("RGB")
  except (PIL.UnidentifiedImageError, OSError) as error:
    name = "the image" if isinstance(image, bytes) else image
    raise ValueError(f"{name} cannot be read as an image: {error}") from error


def _fit(image: PIL.Image.Image, size: tuple[int, int]) -> np.ndarray:
  (height, width), (w, h) = size, image.size
  scale = max(height / h, width / w)
  wide, high = max(int(w * scale), width), max(int(h * scale), height)
  if (wide, high) != (w, h):
    image = image.resize((wide, high), PIL.Image.Resampling.BILINEAR)
  left, top = round((wide - width) / 2), round((high - height) / 2)
  return np.asarray(image.crop((left, top, left + width, top + height)))


def _jsonl(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  lines = path.read_text(encoding="utf-8").splitlines()
  for number, line in enumerate(lines, 1):
    if line.strip():
      try:
        row = json.loads(line)
      except ValueError as error:
        raise ValueError(f"{path}, line {number}: {error}") from error
      if not isinstance(row, dict):
        raise ValueError(f"{path}, line {number}: not an object: {line[:50]}")
      yield row


def _csv(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  with open(path, newline="", encoding="utf-8-sig") as file:
    yield from csv.DictReader(file, strict=True)


def _examples(
  rows: Iterable[Mapping[str, Any]],
  root: pathlib.Path,
  caption: str,
  where: pathlib.Path,
) -> list[Example]:
  found: dict[pathlib.Path, str] = {}
  inside = root.resolve()
  for number, row in enumerate(rows, 1):
    here = f"{where}, row {number}"
    for key in ("file_name", caption):
      value = row.get(key)
      if not isinstance(value, str) or not value.strip():
        keys = ", ".join(str(k) for k in row)
        raise ValueError(f"{here}: no {key!r}; the row has {keys or 'nothing'}")
    path = (root / row["file_name"]).resolve()
    if not path.is_relative_to(inside):
      raise ValueError(f"{here}: {row['file_name']!r} leaves the folder")
    if not path.is_file():
      raise ValueError(f"{here}: there is no file {path}")
    if path in found:
      raise ValueError(f"{here}: {row['file_name']!r} is listed twice")
    found[path] = row[caption]
  if not found:
    raise ValueError(f"{where}: it lists no images")
  return [Example(path, text) for path, text in found.items()]


def _text(value: str | bytes) -> str:
  return value.decode() if isinstance(value, bytes) else str(value)
