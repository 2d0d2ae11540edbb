"""Captioned images: where they are listed, what is refused, how they fit."""

import hashlib
import io
import json
import tarfile

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from unlearning_jax import data
from unlearning_jax.shapes import builder


def picture(height, width, seed=0):
  pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
  return pixels.astype(np.uint8)


def write(folder, rows, name="metadata.jsonl"):
  (folder / "more").mkdir(exist_ok=True)
  for i, file in enumerate(("a.png", "more/b.png")):
    PIL.Image.fromarray(picture(12, 20, i)).save(folder / file)
  if name.endswith("jsonl"):
    text = "\n".join(json.dumps(row) for row in rows) + "\n"
  else:
    lines = [rows[0].keys(), *(row.values() for row in rows)]
    text = "".join(",".join(f'"{v}"' for v in line) + "\n" for line in lines)
  (folder / name).write_text(text)


ROWS = [
  {"file_name": "a.png", "text": "a star, red"},
  {"file_name": "more/b.png", "text": "a house"},
]


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "t.csv"])
def test_images_with_captions(name, tmp_path):
  write(tmp_path, ROWS, name)
  read = data.image_table if name == "t.csv" else data.image_folder
  found = read(tmp_path / name if name == "t.csv" else tmp_path)
  assert [e.caption for e in found] == ["a star, red", "a house"]
  pixels = data.read_images(found, (12, 20))
  for i in range(2):
    np.testing.assert_array_equal(pixels[i], picture(12, 20, i))


def test_another_caption_key(tmp_path):
  write(tmp_path, [{"file_name": "a.png", "prompt": "x", "text": "y"}])
  (example,) = data.image_folder(tmp_path, caption="prompt")
  assert example.caption == "x"


@pytest.mark.parametrize(
  "rows, words",
  [
    ([], "lists no images"),
    ([{"text": "x"}], "row 1: no 'file_name'"),
    ([ROWS[0], {"file_name": "more/b.png"}], "row 2: no 'text'.*file_name"),
    ([{"file_name": "a.png", "text": None}], "row 1: no 'text'"),
    ([{"file_name": "a.png", "text": 3}], "'text' is 3, no text and no list"),
    ([{"file_name": "a.png", "text": []}], r"'text' is \[\], no text"),
    ([{"file_name": "a.png", "text": ["x", 1]}], "no text and no list"),
    (
      [{"file_name": "a.png", "text": "\ud83d"}],
      "row 1: the caption .* is no text",
    ),
    (
      [{"file_name": "a.png", "caption": "x"}],
      "name it: --config.data.caption=caption",
    ),
    ([{"file_name": "../a.png", "text": "x"}], "leaves the folder"),
    ([{"file_name": "/etc/hosts", "text": "x"}], "leaves the folder"),
    ([{"file_name": "c.png", "text": "x"}], "there is no file"),
    ([ROWS[0], ROWS[0]], "row 2.*listed twice"),
    ([["a.png"]], "not an object"),
  ],
)
def test_rows_that_cannot_be_used(rows, words, tmp_path):
  write(tmp_path, rows)
  with pytest.raises(ValueError, match=words):
    data.image_folder(tmp_path)


def test_lists_of_captions_and_empty_ones(tmp_path):
  rows = [
    ROWS[0] | {"text": ["a red star", "a star"]}, ROWS[1] | {"text": ""},
  ]  # fmt: skip
  write(tmp_path, rows)
  first, second = data.image_folder(tmp_path)
  assert first.captions == ("a red star", "a star")
  assert second.captions == ("",)
  # What was tuned on before has the fingerprint that it had.
  plain = data.Example(first.image, "a red star")
  total = hashlib.sha256(hashlib.sha256(b"a red star").digest())
  total.update(hashlib.sha256(first.image.read_bytes()).digest())
  assert data.fingerprint([plain]) == total.hexdigest()
  assert data.fingerprint([first]) != data.fingerprint([plain])


def test_a_parquet_of_captions(tmp_path):
  pyarrow = pytest.importorskip("pyarrow")
  from pyarrow import parquet

  write(tmp_path, ROWS)
  (tmp_path / "metadata.jsonl").unlink()
  rows = [row | {"text": [row["text"], "x"]} for row in ROWS]
  file = tmp_path / "metadata.parquet"
  parquet.write_table(pyarrow.Table.from_pylist(rows), file)
  found = data.image_folder(tmp_path)
  assert [e.captions for e in found] == [("a star, red", "x"), ("a house", "x")]
  file.write_bytes(file.read_bytes()[:-9])
  with pytest.raises(ValueError, match="not a readable parquet"):
    data.image_folder(tmp_path)


def test_captions_beside_the_images(tmp_path):
  # As kohya's and OneTrainer's datasets lie.
  write(tmp_path, ROWS)
  (tmp_path / "metadata.jsonl").unlink()
  PIL.Image.fromarray(picture(4, 4)).save(tmp_path / "c.JPG")
  (tmp_path / "a.txt").write_text("\ufeffa red star\n\n a star \n")
  with pytest.raises(ValueError, match=r"c\.JPG: has no c\.txt beside it"):
    data.image_folder(tmp_path)
  (tmp_path / "c.caption").write_text("")
  found = data.image_folder(tmp_path)
  assert [(e.image.name, e.captions) for e in found] == [
    ("a.png", ("a red star", "a star")), ("c.JPG", ("",)),
  ]  # fmt: skip
  deeper = tmp_path / "kohya" / "10_star"
  deeper.mkdir(parents=True)
  (tmp_path / "a.txt").rename(deeper / "a.txt")
  with pytest.raises(ValueError, match="its folder 10_star has such images"):
    data.image_folder(tmp_path / "kohya")


def pack(path, files):
  with tarfile.open(path, "w") as archive:
    for name, content in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))


def test_a_webdataset(tmp_path):
  buffer = io.BytesIO()
  PIL.Image.fromarray(picture(8, 8)).save(buffer, "png")
  image = buffer.getvalue()
  samples = {
    "s/0.png": image, "s/0.txt": b"a star\n", "s/1.png": image,
    "s/1.json": b'{"text": ["a moon", "the moon"]}', "s/1.cls": b"3",
  }  # fmt: skip
  pack(tmp_path / "0.tar", samples)
  for place in (tmp_path, tmp_path / "0.tar"):
    found = data.image_folder(place)
    captions = [("a star",), ("a moon", "the moon")]
    assert [e.captions for e in found] == captions
    pixels = data.read_images(found, (8, 8))
    np.testing.assert_array_equal(pixels[1], picture(8, 8))
  for change, words in (
    ({"s/2.png": image}, "the sample 's/2' lacks a caption"),
    ({"s/2.txt": b"x"}, "the sample 's/2' lacks an image"),
    ({"s/2.png": image, "s/2.json": b"[1"}, "s.2.json: not readable as JSON"),
    ({"s/2.png": image, "s/2.json": b"[1]"}, "a list, not an object"),
    ({"s/0.jpg": image}, "the sample has another one"),
    ({"s/1.JSON": b"{}"}, "the sample has another one"),
  ):
    pack(tmp_path / "0.tar", samples | change)
    with pytest.raises(ValueError, match=words):
      data.image_folder(tmp_path)
  # img2dataset puts a page of facts beside each caption.
  pack(tmp_path / "0.tar", samples | {"s/0.json": b'{"caption": null}'})
  assert data.image_folder(tmp_path)[0].captions == ("a star",)
  # Files that lie beside each other come first.
  (tmp_path / "x.png").write_bytes(image)
  assert len(data.image_folder(tmp_path)) == 2
  (tmp_path / "x.txt").write_text("a kite")
  assert [e.caption for e in data.image_folder(tmp_path)] == ["a kite"]
  (tmp_path / "x.png").unlink()
  (tmp_path / "x.txt").unlink()
  (tmp_path / "0.tar").write_bytes(b"no archive" * 100)
  with pytest.raises(ValueError, match="not a readable WebDataset"):
    data.image_folder(tmp_path)
  assert [p.name for p in tmp_path.iterdir()] == ["0.tar"]


def test_members_that_would_fill_the_memory(tmp_path):
  path = tmp_path / "0.tar"
  pack(path, {"0.png": b"1234", "0.txt": b"x"})
  raw = path.read_bytes()
  with tarfile.open(path, "w") as archive:
    member = tarfile.TarInfo("0.png")
    member.size = 4
    member.pax_headers = {"GNU.sparse.map": "0,4", "GNU.sparse.size": "4096"}
    archive.addfile(member, io.BytesIO(b"1234"))
  with pytest.raises(ValueError, match="0.png: is sparse, or larger"):
    data.image_folder(path)
  # A header that tells a size larger than the file.
  header = tarfile.TarInfo("0.png")
  header.size = len(raw) + 1
  path.write_bytes(header.tobuf(tarfile.USTAR_FORMAT) + raw[512:])
  with pytest.raises(ValueError, match="0.png: is sparse, or larger"):
    data.image_folder(path)


def test_folders_that_cannot_be_used(tmp_path):
  with pytest.raises(ValueError, match="no metadata.jsonl"):
    data.image_folder(tmp_path)
  with pytest.raises(ValueError, match="no such file"):
    data.image_table(tmp_path / "t.csv")
  (tmp_path / "metadata.jsonl").write_text('{"file_name"')
  with pytest.raises(ValueError, match="line 1"):
    data.image_folder(tmp_path)
  file = tmp_path / "x.png"
  file.write_bytes(b"no image")
  with pytest.raises(ValueError, match="x.png: not a readable image"):
    data.read_images([data.Example(file, "")], (8, 8))


@pytest.mark.parametrize(
  "shape, size", [((12, 20), (6, 6)), ((20, 12), (6, 6)), ((10, 10), (5, 8))]
)
def test_images_are_scaled_then_cut(shape, size):
  """Against the parts done by hand: cover, then the centre."""
  pixels = picture(*shape)
  (found,) = data.read_images([data.Example(pixels, "")], size)
  scale = max(size[0] / shape[0], size[1] / shape[1])
  high, wide = (
    max(int(n * scale), m) for n, m in zip(shape, size, strict=True)
  )
  whole = PIL.Image.fromarray(pixels).resize((wide, high), 2)
  # Halves are rounded to even, as torchvision rounds them.
  top, left = round((high - size[0]) / 2), round((wide - size[1]) / 2)
  wanted = np.asarray(whole)[top : top + size[0], left : left + size[1]]
  np.testing.assert_array_equal(found, wanted)


def test_a_camera_held_upright():
  pixels, buffer = picture(8, 16), io.BytesIO()
  exif = PIL.Image.Exif()
  exif[0x0112] = 6  # the camera was turned by a quarter
  PIL.Image.fromarray(pixels).save(buffer, "png", exif=exif)
  example = data.Example(buffer.getvalue(), "")
  (found,) = data.read_images([example], (16, 8))
  np.testing.assert_array_equal(found, np.rot90(pixels, -1))


def test_a_tfds_source(tmp_path, monkeypatch):
  # The builder's smallest config, smaller still.
  for config in builder.Shapes.BUILDER_CONFIGS:
    monkeypatch.setattr(config, "train", 6)
    monkeypatch.setattr(config, "heldout", 4)
  source = builder.build(tmp_path, "tiny").as_data_source(split="train")
  examples = data.source_examples(source)
  assert len(examples) == 6 and all(" " in e.caption for e in examples)
  pixels = data.read_images(examples, (32, 32))
  for i, row in enumerate(source):
    np.testing.assert_array_equal(pixels[i], row["image"])
  folder = tmp_path / "shapes" / "tiny" / "1.0.0"
  again = data.prepared_dataset(folder, "train[:4]")
  assert [e.caption for e in again] == [e.caption for e in examples[:4]]
  np.testing.assert_array_equal(again[3].image, examples[3].image)
  for arguments, words in (
    ((tmp_path, "train"), "no dataset that tfds has prepared"),
    ((folder, "trian"), "split 'trian'"),
  ):
    with pytest.raises(ValueError, match=words):
      data.prepared_dataset(*arguments)
  with pytest.raises(ValueError, match="'captoin'.*did you mean 'caption'"):
    data.prepared_dataset(folder, "train", caption="captoin")


def test_several_captions_of_a_tfds_row():
  texts = np.array([b"a star", "a moon\u00eb".encode()], object)
  rows = [{"image": picture(4, 4), "caption": texts}]
  (found,) = data.source_examples(rows)
  assert found.captions == ("a star", "a moon\u00eb")
  with pytest.raises(ValueError, match="row 0: no 'caption'.*3.*, no text"):
    data.source_examples([rows[0] | {"caption": np.int64(3)}])


class Pictures(tfds.core.GeneratorBasedBuilder):
  """One picture whose feature has a name of its own."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    features = {
      "picture": tfds.features.Image(shape=(8, 8, 3), encoding_format="png"),
      "caption": tfds.features.Text(),
    }
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    buffer = io.BytesIO()
    PIL.Image.fromarray(picture(8, 8)).save(buffer, "png")
    yield 0, {"picture": buffer.getvalue(), "caption": "a kite"}


def test_the_only_image_of_a_tfds_row_is_found(tmp_path):
  made = Pictures(data_dir=str(tmp_path), file_format="array_record")
  made.download_and_prepare()
  (row,) = data.prepared_dataset(made.data_dir, "train")
  assert row.caption == "a kite"
  np.testing.assert_array_equal(row.image, picture(8, 8))


def test_processes_share_before_they_read():
  shares = [data.share(list(range(11)), i, 3) for i in range(3)]
  assert [len(rows) for rows in shares] == [4, 4, 3]
  assert sorted(sum(shares, [])) == list(range(11))
  with pytest.raises(ValueError, match="2 rows for 3 processes"):
    data.share([0, 1], 0, 3)


def test_fingerprints_tell_rows_apart(tmp_path):
  (tmp_path / "a").write_bytes(b"image")
  pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
  rows = [
    data.Example(tmp_path / "a", "one"),
    data.Example(b"image", "two"),
    data.Example(pixels, "three"),
  ]
  found = data.fingerprint(rows)
  # Bytes are what they are, wherever they lie.
  assert found == data.fingerprint([data.Example(b"image", "one"), *rows[1:]])
  others = [
    rows[::-1],
    rows[:2],
    [data.Example(b"imaged", "one"), *rows[1:]],
    [data.Example(b"image", "on"), *rows[1:]],
    [*rows[:2], data.Example(pixels.reshape(1, 4, 3), "three")],
    [*rows[:2], data.Example(pixels + 1, "three")],
    [*rows[:2], data.Example(pixels.transpose(1, 0, 2), "three")],
  ]
  assert len({found, *map(data.fingerprint, others)}) == 1 + len(others)
