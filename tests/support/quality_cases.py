"""Random weights and pictures of the goldens of image quality.

numpy draws them from a seed, so the file of goldens holds only what other
packages made of them.
"""

import functools

import jax
import numpy as np
from flax import traverse_util

from unlearning_jax.models.inception import SIDE, Inception
from unlearning_jax.models.lpips import PLACES, Lpips

PICTURES = {"small": (40, 52), "large": (350, 420)}


def picture(size):
  """A picture with smooth and with rough parts."""
  rng = np.random.default_rng(7)
  rows, columns = np.mgrid[: size[0], : size[1]]
  waves = np.stack([np.sin(rows / 7), np.cos(columns / 9), rows * columns % 2])
  noise = rng.normal(size=(*size, 3))
  levels = 128 + 70 * np.moveaxis(waves, 0, -1) + 30 * noise
  return np.clip(levels, 0, 255).astype(np.uint8)


def _kernels(network, shape):
  given = jax.ShapeDtypeStruct((1, *shape), np.float32)
  made = jax.eval_shape(network.init, jax.random.key(0), given)["params"]
  flat = traverse_util.flatten_dict(made)
  return {
    ".".join(path[:-1]): leaf.shape[::-1][:2] + leaf.shape[:2]
    for path, leaf in sorted(flat.items())
    if path[-1] == "kernel"
  }


def _convolution(rng, shape):
  drawn = rng.standard_normal(shape, dtype=np.float32)
  return drawn * np.float32((2 / np.prod(shape[1:])) ** 0.5)


@functools.cache
def inception():
  """The tensors of pytorch-fid's file, random."""
  rng, state = np.random.default_rng(0), {}
  for name, shape in _kernels(Inception(), (SIDE, SIDE, 3)).items():
    state[f"{name}.conv.weight"] = _convolution(rng, shape)
    norm = rng.uniform(-1, 1, (4, shape[0])).astype(np.float32)
    state[f"{name}.bn.weight"] = 1 + norm[0] / 4
    state[f"{name}.bn.bias"] = norm[1] / 8
    state[f"{name}.bn.running_mean"] = norm[2] / 8
    state[f"{name}.bn.running_var"] = 1 + norm[3] / 2
  state["fc.weight"] = np.zeros((1008, 2048), np.float32)
  state["fc.bias"] = np.zeros(1008, np.float32)
  return state


def lpips(network):
  """The tensors of torchvision's trunk and of LPIPS's layers, random."""
  rng, trunk, linear = np.random.default_rng(1), {}, {}
  for name, shape in _kernels(Lpips(network), (2, 64, 64, 3)).items():
    if name.startswith("lin"):
      weights = rng.uniform(0, 1, shape).astype(np.float32)
      linear[f"{name}.model.1.weight"] = weights
    else:
      place = name.removeprefix("conv")
      trunk[f"features.{place}.weight"] = _convolution(rng, shape)
      bias = rng.uniform(-0.1, 0.1, shape[0]).astype(np.float32)
      trunk[f"features.{place}.bias"] = bias
  assert len(trunk) == 2 * len(PLACES[network])
  return trunk, linear


def pairs():
  """Two pictures of one size that resemble each other."""
  first = picture((96, 80))
  rng = np.random.default_rng(8)
  noise = rng.normal(size=first.shape) * 40
  return first, np.clip(first + noise, 0, 255).astype(np.uint8)


def vectors():
  """Two sets of features of different means and covariances."""
  rng = np.random.default_rng(9)
  mix = rng.normal(size=(48, 48)) / 7
  x, y = rng.normal(size=(2, 600, 48))
  return np.float32(x @ mix), np.float32(y @ mix.T + 0.1)
