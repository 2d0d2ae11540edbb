"""The embedded world: drawn, captioned, and modelled by a tiny diffusion model.

The model and its judge ship with the package, in the formats of full-size ones.
"""

import pathlib

_ASSETS = pathlib.Path(__file__).parent / "assets"


def model_folder() -> pathlib.Path:
  """The tiny Stable Diffusion: a diffusers folder."""
  return _ASSETS / "model"


def judge_folder() -> pathlib.Path:
  """The classifier that judges its images."""
  return _ASSETS / "judge"


def clip_folder() -> pathlib.Path:
  """The contrastive towers that its text encoder was trained with."""
  return _ASSETS / "clip"
