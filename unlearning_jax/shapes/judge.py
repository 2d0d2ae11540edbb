"""The judge of the Shapes world: which classes does an image show?

It shares no layer, seed or training run with the generator that it judges.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float, PRNGKeyArray, UInt8
from safetensors.numpy import load_file, save_file

from unlearning_jax import models
from unlearning_jax.judges import Judge
from unlearning_jax.models.flax_layers import (
  Conv,
  Dense,
  LayerNorm,
  parameter_shapes,
)
from unlearning_jax.projections import leaves_of
from unlearning_jax.shapes import vocabulary
from unlearning_jax.stable_diffusion import Params

_FILE = "judge.safetensors"
_CONFIG = "judge.json"
# Batches have one size, so that one program serves any number of images.
_BATCH = 256
# See benchmarks/collapse_shapes.py: what was erased well stays below.
FAR = 0.08


class ShapesNet(nn.Module):
  """Convolutions with layer normalization, and a linear layer for each head."""

  heads: tuple[tuple[str, int], ...]
  widths: tuple[int, ...] = (32, 64, 128)
  hidden: int = 256

  @nn.compact
  def __call__(
    self, images: Float[Array, "b 32 32 3"]
  ) -> dict[str, Float[Array, "b n"]]:
    """Images in [-1, 1] to logits for each head."""
    x = images
    for i, width in enumerate(self.widths):
      for j in range(2):
        x = Conv(width, (3, 3), name=f"conv_{i}_{j}")(x)
        x = nn.relu(LayerNorm(name=f"norm_{i}_{j}")(x))
      x = nn.max_pool(x, (2, 2), (2, 2))
    x = nn.relu(Dense(self.hidden, name="hidden")(x.reshape(len(x), -1)))
    return {name: Dense(n, name=f"head_{name}")(x) for name, n in self.heads}


def loss(
  net: ShapesNet,
  params: Params,
  frozen: object,
  batch: Mapping[str, Array],
  key: PRNGKeyArray,
) -> tuple[Float[Array, ""], dict[str, Array]]:
  """The heads' cross-entropies, summed; label -1 has no loss.

  Images are perturbed (noise, blur, brightness), because the judge will see
  decoded images, which are softer than renders.
  """
  del frozen
  images = _perturb(batch["images"].astype(jnp.float32) / 127.5 - 1, key)
  logits = models.apply(net, params, images)
  total, metrics = jnp.zeros(()), {}
  for name, _ in net.heads:
    labels = batch[f"label_{name}"]
    known = labels >= 0
    target = jnp.where(known, labels, 0)
    log_probs = jax.nn.log_softmax(logits[name])
    losses = -jnp.take_along_axis(log_probs, target[:, None], -1)[:, 0]
    count = jnp.maximum(known.sum(), 1)
    total += jnp.where(known, losses, 0).sum() / count
    right = (logits[name].argmax(-1) == target) & known
    metrics[f"accuracy_{name}"] = right.sum() / count
  return total, metrics


def _perturb(images: Array, key: PRNGKeyArray) -> Array:
  keys = jax.random.split(key, 5)
  shape = (len(images), 1, 1, 1)
  shifted = jnp.roll(images, 1, 1), jnp.roll(images, 1, 2)
  blurred = (2 * images + shifted[0] + shifted[1]) / 4
  images = images + jax.random.uniform(keys[0], shape) * (blurred - images)
  gain = jax.random.uniform(keys[1], shape, minval=0.85, maxval=1.15)
  offset = jax.random.uniform(keys[2], shape, minval=-0.1, maxval=0.1)
  scale = jax.random.uniform(keys[3], shape, maxval=0.15)
  noise = jax.random.normal(keys[4], images.shape)
  return images * gain + offset + scale * noise


def _score(
  net: ShapesNet, params: Params, images: UInt8[np.ndarray, "n 32 32 3"]
) -> dict[str, Float[np.ndarray, "n c"]]:
  """Class probabilities by head, computed in batches."""
  parts = []
  for start in range(0, len(images), _BATCH):
    part = images[start : start + _BATCH]
    padding = ((0, _BATCH - len(part)),) + ((0, 0),) * 3
    probs = _probabilities(net, params, np.pad(part, padding))
    parts.append({k: np.asarray(v)[: len(part)] for k, v in probs.items()})
  return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}


@partial(jax.jit, static_argnums=0)
def _probabilities(net: ShapesNet, params: Params, images: Array):
  logits = models.apply(net, params, images.astype(jnp.float32) / 127.5 - 1)
  return {name: jax.nn.softmax(value) for name, value in logits.items()}


def save(
  folder: str | os.PathLike[str], params: Params, heads: Mapping[str, Any]
):
  """Writes the judge's weights in float16, and its classes."""
  path = pathlib.Path(folder)
  path.mkdir(parents=True, exist_ok=True)
  flat = {k: np.asarray(v, np.float16) for k, v in leaves_of(params).items()}
  save_file(flat, path / _FILE)
  classes = {name: list(names) for name, names in heads.items()}
  (path / _CONFIG).write_text(json.dumps({"heads": classes}, indent=1))


def describe(judged: Mapping[str, str]) -> str:
  """What an image shows: object or person, style, hazard."""
  kind = "identity" if judged["kind"] == "portrait" else "object"
  words = [judged[head] for head in (kind, "style", "hazard")]
  return ", ".join(w for w in words if w not in (vocabulary.PLAIN, "safe"))


def load(folder: str | os.PathLike[str]) -> Judge:
  """Reads a folder that `save` wrote.

  Raises:
    ValueError: a missing file, or tensors that are not the network's.
  """
  path = pathlib.Path(folder)
  for name in (_FILE, _CONFIG):
    if not (path / name).is_file():
      raise ValueError(f"judge: {path / name} is missing")
  classes = json.loads((path / _CONFIG).read_text())["heads"]
  heads = {name: tuple(names) for name, names in classes.items()}
  net = ShapesNet(tuple((name, len(c)) for name, c in heads.items()))
  template = parameter_shapes(net, jnp.zeros((1, 32, 32, 3)))
  flat = load_file(path / _FILE)
  wanted = {name: leaf.shape for name, leaf in leaves_of(template).items()}
  if wanted != {name: value.shape for name, value in flat.items()}:
    odd = sorted(set(wanted) ^ set(flat)) or "shapes differ"
    raise ValueError(f"judge: {path / _FILE} does not fit the net: {odd}")
  params = traverse_util.unflatten_dict(
    {name: np.float32(flat[name]) for name in wanted}, sep="/"
  )
  digest = hashlib.sha256((path / _FILE).read_bytes()).hexdigest()
  return Judge(
    name="shapes",
    score=partial(_score, net, params),
    labels=heads,
    weights_hash=digest,
    image_size=(32, 32),
    describe=describe,
    cannot_see="anything outside the Shapes world",
    far=FAR,
  )
