"""What judges that are Flax networks share: batches, and folders of weights."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float, UInt8

from unlearning_jax import models, sharding
from unlearning_jax.judges import weights
from unlearning_jax.judges.pixels import Pixels

Images = UInt8[np.ndarray, "n h w 3"]
# Images at once: one program, whatever their number, so that an image's scores
# are the same alone and among others.
_BATCH = 8
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


def batched(
  network: nn.Module,
  params: Mapping[str, Any],
  pixels: Callable[[Images], Float[np.ndarray, "n ..."]],
) -> Callable[[Images], Float[np.ndarray, "n o"]]:
  """A network as a function of images, so many at once.

  Args:
    network: takes normalized images.
    pixels: what it sees of images.
  """
  params = sharding.on_device(params)

  def score(images: Images) -> Float[np.ndarray, "n o"]:
    parts = []
    for start in range(0, len(images), _BATCH):
      seen = pixels(images[start : start + _BATCH])
      padding = ((0, _BATCH - len(seen)),) + ((0, 0),) * (seen.ndim - 1)
      out = _apply(network, params, np.pad(seen, padding))
      parts.append(np.asarray(out)[: len(seen)])
    return np.concatenate(parts)

  return score


@partial(jax.jit, static_argnums=0)
def _apply(
  network: nn.Module, params: Mapping[str, Any], images: Array
) -> Array:
  return models.apply(network, params, images)


def classifier(
  network: nn.Module, params: Mapping[str, Any], pixels: Pixels, head: str
) -> Callable[[Images], dict[str, Float[np.ndarray, "n c"]]]:
  """Probabilities of the classes of one head, as a judge's `score`."""
  logits = batched(network, params, pixels)
  return lambda images: {head: softmax(logits(images))}


def softmax(logits: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
  """Probabilities, in float64."""
  shifted = np.exp(np.float64(logits) - logits.max(axis=1, keepdims=True))
  return shifted / shifted.sum(axis=1, keepdims=True)


def unit(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
  """Vectors of length one, in float64."""
  exact = np.asarray(vectors, np.float64)
  return exact / np.linalg.norm(exact, axis=1, keepdims=True)


def cosines(
  vectors: Float[np.ndarray, "n d"], others: Float[np.ndarray, "c d"]
) -> Float[np.ndarray, "n c"]:
  """Products of unit vectors: the same bits whatever n is, unlike BLAS's."""
  return np.stack([(others * vector).sum(axis=1) for vector in vectors])


def folder_files(
  folder: str, project: str, *more: str
) -> tuple[weights.File, ...]:
  """What a transformers folder of a judge must have.

  Args:
    folder: in the folder of judges.
    project: where it is published.
    *more: other files than config and weights.
  """
  made = weights.File
  return (
    made(f"{folder}/config.json", f"config.json of {project}"),
    made(
      f"{folder}/model.safetensors",
      f"model.safetensors (or pytorch_model.bin) of {project}",
      also=f"{folder}/pytorch_model.bin",
    ),
    *(made(f"{folder}/{name}", f"{name} of {project}") for name in more),
  )


def picked(cls: type, config: dict[str, Any]) -> dict[str, Any]:
  """The values of a config that are fields of a dataclass."""
  names = {field.name for field in dataclasses.fields(cls)} - {"dtype"}
  return {key: value for key, value in config.items() if key in names}
