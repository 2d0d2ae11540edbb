"""Pictures are of the named formats, whole, and no larger than they can be."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from unlearning_jax import pictures


def encoded(kind, size=(6, 4)):
  file = io.BytesIO()
  Image.new("RGB", size, (200, 30, 40)).save(file, format=kind)
  return file.getvalue()


@pytest.mark.parametrize("kind", pictures.FORMATS)
def test_the_first_bytes_decide_the_format(tmp_path, kind):
  path = tmp_path / "a.txt"
  path.write_bytes(encoded(kind))
  assert pictures.read(path).size == (6, 4)
  assert pictures.read(path.read_bytes()).mode == "RGB"


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "EPS", "PPM"])
def test_other_formats_are_refused_whatever_the_ending_says(tmp_path, kind):
  # Pillow draws EPS by another program.
  path = tmp_path / "a.png"
  path.write_bytes(encoded(kind))
  with pytest.raises(
    ValueError, match="a.png: not a readable image: its first"
  ):
    pictures.read(path)


def test_a_head_that_claims_more_than_the_file_can_hold(tmp_path):
  data = bytearray(encoded("PNG"))
  data[16:24] = (12000).to_bytes(4, "big") * 2
  data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
  with pytest.raises(ValueError, match="claims 12000 x 12000 pixels and has"):
    pictures.read(bytes(data))
  # A flat picture is small, and may be.
  path = tmp_path / "flat.png"
  Image.fromarray(np.zeros((2000, 2000), np.uint8)).save(path)
  assert pictures.read(path).size == (2000, 2000)
