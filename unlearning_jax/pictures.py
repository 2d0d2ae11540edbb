"""Opens pictures: of the named formats, whole, and from files alone.

Pillow knows dozens of formats, and draws some of them by other programs. What a
file is, its first bytes decide, and its ending does not.
"""

import io
import os
import pathlib
import struct
import warnings

import PIL.Image

from unlearning_jax import durable

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
# So many pixels any file may claim; more, if it is large enough to hold them.
_PIXELS = 1 << 24
_PIXELS_A_BYTE = 1 << 10
_BROKEN = (
  OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError,
  EOFError, OverflowError, RuntimeError, struct.error,
  NotImplementedError, PIL.Image.DecompressionBombError,
)  # fmt: skip


def read(source: str | os.PathLike[str] | bytes) -> PIL.Image.Image:
  """A picture, decoded, of any mode.

  Args:
    source: a file, or the encoded bytes.

  Raises:
    ValueError: it is no picture of `FORMATS`, is damaged, or claims more pixels
      than it can hold; the message names the file.
  """
  name = "the image" if isinstance(source, bytes) else os.fspath(source)
  data = source
  if not isinstance(data, bytes):
    durable.check_plain(data)
    data = pathlib.Path(data).read_bytes()
  try:
    with warnings.catch_warnings():
      # Pillow warns of large pictures, which are refused below.
      warnings.simplefilter("ignore")
      image = PIL.Image.open(io.BytesIO(data), formats=FORMATS)
      pixels = image.width * image.height
      if pixels > max(_PIXELS, _PIXELS_A_BYTE * len(data)):
        raise ValueError(
          f"it claims {image.width} x {image.height} pixels and has "
          f"{len(data)} bytes"
        )
      image.load()
      return image
  except PIL.UnidentifiedImageError as error:
    raise ValueError(
      f"{name}: not a readable image: its first bytes, {data[:8]!r}, begin "
      f"none of {', '.join(FORMATS)}"
    ) from error
  except _BROKEN as error:
    raise ValueError(f"{name}: not a readable image: {error}") from error
