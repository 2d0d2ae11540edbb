"""Pictures inside a page, and the veil over unsafe ones."""

import base64
import io
import pathlib

from PIL import Image

from unlearning_jax import pictures
from unlearning_jax.report.markup import Html, element

# Up to this size each pixel counts, as in the pictures of the Shapes world.
_TINY = 64


def open_image(root: pathlib.Path, path: str) -> Image.Image:
  """An image of the run.

  Raises:
    ValueError: it is missing or leaves the folder.
  """
  file = (root / path).resolve()
  if not file.is_relative_to(root.resolve()) or not file.is_file():
    raise ValueError(f"report: {path!r} is not a file below {root}")
  return pictures.read(file)


def picture(
  image: Image.Image, alt: str, *, blur: bool = False, max_px: int = 256
) -> Html:
  """An image as a data URI, so that the page needs no other file.

  Args:
    image: any mode and size; shrunk to fit `max_px`.
    alt: a description for readers who cannot see it.
    blur: cover it by 8 x 8 coarse patches until the reader asks, by a click,
      Enter or the space bar on this picture. The file holds it all the same.
    max_px: longest side, in pixels.
  """
  image = image.convert("RGB")
  image.thumbnail((max_px, max_px), Image.Resampling.LANCZOS)
  clear = _img(image, alt)
  if not blur:
    return clear
  patches = image.resize((8, 8), Image.Resampling.BOX)
  cover = element(
    "summary",
    _img(patches, f"Blurred: {alt}", "patches"),
    element("span", "show", class_="ask"),
    element("span", "hide", class_="ask"),
  )
  return element("details", cover, clear, class_="veil")


def _img(image: Image.Image, alt: str, class_: str | None = None) -> Html:
  file = io.BytesIO()
  if max(image.size) <= _TINY:
    kind, class_ = "png", class_ or "tiny"
    image.save(file, format=kind, optimize=True)
  else:
    kind = "jpeg"
    image.save(file, format=kind, quality=85, optimize=True)
  data = base64.b64encode(file.getvalue()).decode()
  return element(
    "img", src=f"data:image/{kind};base64,{data}", alt=alt, class_=class_
  )
