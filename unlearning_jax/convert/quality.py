"""Turns the published networks of FID, KID and LPIPS into our parameters."""

from collections.abc import Mapping

import numpy as np

from unlearning_jax.convert import names, reader, vision
from unlearning_jax.convert.vision import Params, Table
from unlearning_jax.models.inception import SIDE, Inception
from unlearning_jax.models.lpips import PLACES, Lpips

_INCEPTION: Table = (
  (r"\.conv\.", "."),
  (r"\.bn\.", ".norm."),
  # Our names read a number at the end as a place in a list.
  (r"_(\d+)\.", r".\1."),
)
# As TensorFlow's graph has it; torch's default is another.
_EPSILON = 1e-3


def inception(state: Mapping[str, np.ndarray], what: str) -> Params:
  """Parameters of `Inception`, with its batch norms folded.

  Args:
    state: the tensors of pytorch-fid's file. Its classifier is left out.
    what: the file, for messages.

  Raises:
    ValueError: tensors are missing, left over, of other shapes or not finite;
      or they are those of torchvision's own Inception.
  """
  classes = np.shape(state.get("fc.bias", ()))
  if classes != (1008,):
    raise ValueError(
      f"{what}: has a classifier of shape {classes}, and the network of FID "
      "has 1008 classes; torchvision's own Inception gives other numbers"
    )
  kept = {
    name: value
    for name, value in state.items()
    if not name.startswith("fc.") and not name.endswith("batches_tracked")
  }
  renamed = vision.renamed(reader.as_float32(kept, what), _INCEPTION, what)
  folded = vision.folded(renamed, what, _EPSILON)
  return vision.laid_out(folded, Inception(), (SIDE, SIDE, 3), what)


def lpips(
  trunk: Mapping[str, np.ndarray],
  linear: Mapping[str, np.ndarray],
  network: str,
  what: str,
) -> Params:
  """Parameters of `Lpips`.

  Args:
    trunk: the tensors of torchvision's AlexNet or VGG-16; its classifier is
      left out.
    linear: the weights of the layers, as the package `lpips` has them.
    network: alex or vgg.
    what: the files, for messages.

  Raises:
    ValueError: tensors are missing, left over, of other shapes or not finite.
  """
  kept = {k: v for k, v in trunk.items() if k.startswith("features.")}
  table = (
    *((rf"^features\.{place}\.", f"conv{place}.") for place in PLACES[network]),
    (r"^lin(\d)\.model\.1\.", r"lin\1."),
  )
  both: names.State = {**kept, **linear}
  state = vision.renamed(reader.as_float32(both, what), table, what)
  return vision.laid_out(state, Lpips(network), (2, 64, 64, 3), what)
