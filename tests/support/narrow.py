"""The Shapes model with a small UNet of random weights: it compiles sooner.

For tests of scripts that say nothing of what is drawn.
"""

import atexit
import dataclasses
import functools
import pathlib
import shutil
import tempfile

import jax

from tests.support import attacks_cases
from unlearning_jax import convert, shapes


@functools.cache
def folder() -> pathlib.Path:
  """The model's folder, which goes with this process."""
  _, victim, _ = attacks_cases.make_world(small=True)
  small = {
    part: convert.to_torch(jax.device_get(tree))
    for part, tree in victim.params.items()
  }
  place = pathlib.Path(tempfile.mkdtemp())
  atexit.register(shutil.rmtree, place)
  files = convert.load(shapes.model_folder())
  files = dataclasses.replace(
    files,
    configs={
      **files.configs,
      "unet": attacks_cases.UNET,
      "text_encoder": files.configs["text_encoder"] | {"num_hidden_layers": 1},
    },
    states=files.states | small,
  )
  convert.save_folder(place / "model", files)
  return place / "model"


def lines() -> str:
  """Lines of Python that put the model in a notebook's own process."""
  return (
    "import pathlib\n"
    "from unlearning_jax.shapes import world\n"
    f"world.model_folder = lambda: pathlib.Path({str(folder())!r})"
  )
