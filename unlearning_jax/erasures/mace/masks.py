"""Where a concept is in its training images, without a segmenter.

Sources: `png` and `analytic` masks are given; `attention` and `cfg_diff` are
read off the model itself, from the images' own latents with noise on them;
`full` is everywhere, for styles and other things without a place.
"""

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
from jaxtyping import Array, Bool, Float, Float64, PRNGKeyArray, Shaped

from unlearning_jax import models, schedules
from unlearning_jax.erasures.mace.text import Words
from unlearning_jax.stable_diffusion import Params, StableDiffusion

SOURCES = ("attention", "cfg_diff", "analytic", "png", "full")
# Below and above these shares of the image a mask says nothing.
AREA = (0.02, 0.95)
# Noise at which layout is settled and the concept still drawn.
_TIMES = (200, 400, 600, 800)
# Attention maps of fewer or more cells a side are too coarse or too scattered.
_MIN_SIDE = 8


def _shares(size: int, wanted: int) -> Float64[np.ndarray, "wanted size"]:
  """Row i: how much of each of `size` cells lies in the i-th of `wanted`."""
  edges = np.arange(wanted + 1) * size / wanted
  cells = np.arange(size)
  low = np.maximum(edges[:-1, None], cells)
  high = np.minimum(edges[1:, None], cells + 1)
  return np.maximum(high - low, 0) * wanted / size


def layer_sizes(sd: StableDiffusion) -> list[tuple[int, ...]]:
  """Height and width of every level of the UNet, the finest first."""
  sizes = [tuple(sd.latent_size)]
  for _ in sd.unet.config.block_out_channels[1:]:
    sizes.append(tuple(-(-side // 2) for side in sizes[-1]))
  return sizes


def layer_mask(
  mask: Bool[np.ndarray, "H W"], size: tuple[int, ...], resize: str
) -> Bool[np.ndarray, " q"]:
  """A mask at a layer's size, flat; where it had a cell, it keeps one.

  Args:
    mask: at any size.
    size: height and width of the layer.
    resize: "nearest", as the release, or "area": cells covered by half.
  """
  height, width = mask.shape
  cover = _shares(height, size[0]) @ mask @ _shares(width, size[1]).T
  if resize == "nearest":
    rows = np.arange(size[0]) * height // size[0]
    small = mask[rows][:, np.arange(size[1]) * width // size[1]]
  else:
    small = cover >= 0.5 - 1e-9
  if mask.any() and not small.any():
    small = np.zeros(size, bool)
    small.flat[np.argmax(cover)] = True
  return small.reshape(-1)


def segment(heat: Float[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
  """The hot part of a map: Otsu's threshold, no specks, one cell of margin."""
  low, high = float(heat.min()), float(heat.max())
  if not high > low:
    return np.zeros(heat.shape, bool)
  heat = (heat - low) / (high - low)
  hot = heat > _otsu(heat.reshape(-1))
  # Its stubs do not know which of its results are tuples.
  ndimage: Any = scipy.ndimage
  labels, count = ndimage.label(hot)
  kept = np.bincount(labels.reshape(-1), minlength=count + 1)
  kept = kept >= 0.01 * heat.size
  kept[0] = False
  return ndimage.binary_dilation(kept[labels])


def _otsu(values: Float[np.ndarray, " n"]) -> float:
  """The threshold that leaves the least variance within both sides."""
  values = np.sort(np.asarray(values, np.float64))
  count = np.arange(1, len(values))
  below = np.cumsum(values)[:-1]
  above = values.sum() - below
  rest = len(values) - count
  between = count * rest * (below / count - above / rest) ** 2
  i = int(np.argmax(between))
  return float((values[i] + values[i + 1]) / 2)


def gate(masks: Bool[np.ndarray, "m H W"]) -> Bool[np.ndarray, " m"]:
  """Which masks have a believable area."""
  area = masks.mean(axis=(1, 2))
  return (area >= AREA[0]) & (area <= AREA[1])


@functools.partial(jax.jit, static_argnames=("sd", "source"))
def _heat(sd, unet, latents, states, others, phrase, t, key, source):
  """One map an image, (m, h, w), at one timestep."""
  rows = len(latents)
  noise = jax.random.normal(key, latents.shape)
  times = jnp.full((rows,), t)
  noisy = schedules.add_noise(sd.schedule, latents, noise, times)

  def spread(context: Array) -> Array:
    return jnp.broadcast_to(context, (rows, *context.shape))

  if source == "cfg_diff":
    predict = functools.partial(models.apply, sd.unet, unet, noisy, times)
    gap = jnp.abs(predict(spread(states)) - predict(spread(others)))
    return gap.mean(-1)
  _, found = models.apply_with_attention(
    sd.unet, unet, noisy, times, spread(states)
  )
  height, width = sd.latent_size
  sides = {h * w: (h, w) for h, w in layer_sizes(sd)}
  maps = []
  for weights in found.values():
    side = sides[weights.shape[2]]
    if min(side) < _MIN_SIDE or max(side) > max(height // 2, _MIN_SIDE):
      continue
    drawn = jnp.einsum("bhql,l->bq", weights, phrase) / weights.shape[1]
    drawn = drawn.reshape(rows, *side)
    maps.append(jax.image.resize(drawn, (rows, height, width), "bilinear"))
  return jnp.mean(jnp.stack(maps), axis=0)


def find(
  sd: StableDiffusion,
  params: Params,
  latents: Float[np.ndarray, "m h w c"],
  states: Float[np.ndarray, "l d"],
  anchor: Float[np.ndarray, "l d"],
  phrase: Bool[np.ndarray, " l"],
  key: PRNGKeyArray,
  source: str,
) -> Bool[np.ndarray, "m h w"]:
  """Masks of a concept, from how the base model denoises its images.

    attention  what the phrase's tokens draw, in the layers of middling size
    cfg_diff   |eps(x_t, prompt) - eps(x_t, prompt with the anchor)|

  Both are averaged over t from 200 to 800, then segmented.

  Args:
    sd: the model.
    params: its parameters, before any erasure.
    latents: of the images.
    states: text states of a prompt with the concept.
    anchor: of the same prompt with the anchor.
    phrase: the concept's place in the former.
    key: draws the noise.
    source: "attention" or "cfg_diff".
  """
  total = np.zeros(latents.shape[:3])
  last = sd.schedule.num_train_timesteps - 1
  for i, t in enumerate(_TIMES):
    total += np.asarray(
      _heat(
        sd,
        params["unet"],
        jnp.asarray(latents),
        jnp.asarray(states),
        jnp.asarray(anchor),
        jnp.asarray(phrase, jnp.float32),
        jnp.asarray(min(t, last)),
        jax.random.fold_in(key, i),
        source,
      )
    )
  return np.stack([segment(heat) for heat in total])


def check_given(
  masks: Shaped[np.ndarray, "m H W"], shape: tuple[int, ...], name: str
) -> Bool[np.ndarray, "m H W"]:
  """Masks that came from outside, as booleans.

  Raises:
    ValueError: their shape is not (images, height, width), `shape`; values
      other than 0 and 1 (or 255); an empty mask.
  """
  masks = np.asarray(masks)
  if masks.shape != shape:
    raise ValueError(
      f"masks of {name!r}: shape {masks.shape}; want {shape}, one for each "
      "image and of its size"
    )
  values = set(np.unique(masks).tolist())
  if not (values <= {0, 1} or values <= {0, 255}):
    raise ValueError(
      f"masks of {name!r} hold {len(values)} values; allowed: 0 and 1, or 0 "
      "and 255. Lossy files blur them"
    )
  empty = [i for i, mask in enumerate(masks) if not mask.any()]
  if empty:
    raise ValueError(f"masks of {name!r}: image {empty[0]} has an empty one")
  return masks > 0


def choose(
  sd: StableDiffusion,
  params: Params,
  name: str,
  source: str,
  given: Bool[np.ndarray, "m H W"] | None,
  latents: Float[np.ndarray, "m h w c"],
  words: Words,
  key: PRNGKeyArray,
) -> tuple[Bool[np.ndarray, "m H W"], list[int]]:
  """A concept's masks, and the images that get a full one instead."""
  if source == "full":
    return np.ones(latents.shape[:3], bool), []
  if source in ("attention", "cfg_diff"):
    masks = find(
      sd, params, latents, words.states[0], words.anchors[0],
      words.phrases[0], key, source,
    )  # fmt: skip
  else:
    assert given is not None
    masks = given
  bad = ~gate(masks)
  full = np.flatnonzero(bad).tolist()
  if full:
    warnings.warn(
      f"{name!r}: {source} masks of images {full} cover less than "
      f"{AREA[0]:.0%} or more than {AREA[1]:.0%}; the whole image is taken",
      stacklevel=2,
    )
  return masks | bad[:, None, None], full


def for_layers(
  sd: StableDiffusion, masks: Sequence[Bool[np.ndarray, "H W"]], resize: str
) -> dict[int, Bool[np.ndarray, "m q"]]:
  """Masks by the number of cells of each level of the UNet."""
  return {
    size[0] * size[1]: np.stack(
      [layer_mask(mask, size, resize) for mask in masks]
    )
    for size in layer_sizes(sd)
  }
