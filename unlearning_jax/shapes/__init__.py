"""The embedded world: rendered, captioned, and learned by a tiny model.

Its Stable Diffusion and its judge ship with the package, in the formats of
full-size ones.
"""

import pathlib

_ASSETS = pathlib.Path(__file__).parent / "assets"


def model_folder() -> pathlib.Path:
  """The tiny Stable Diffusion, a diffusers folder."""
  return _ASSETS / "model"


def judge_folder() -> pathlib.Path:
  """The classifier that judges the world's images."""
  return _ASSETS / "judge"


def clip_folder() -> pathlib.Path:
  """The contrastive towers that trained the text encoder."""
  return _ASSETS / "clip"
