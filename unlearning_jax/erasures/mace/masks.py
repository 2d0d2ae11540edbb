"""Where a concept is in its training images, without a segmenter.

`png` and `analytic` masks come from the caller. `attention` and `cfg_diff`
masks come from the model, which denoises the noised images. A `full` mask
covers the image, for styles and for other concepts without a place.
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
# A mask that covers less or more of the image than this is not believed.
AREA = (0.02, 0.95)
# At these timesteps the layout is settled and the concept still takes shape.
_TIMES = (200, 400, 600, 800)
# Smaller attention maps are too coarse; those of the finest layer scatter.
_MIN_SIDE = 8


def _shares(size: int, wanted: int) -> Float64[np.ndarray, "wanted size"]:
  """Row i: the share of the i-th of `wanted` cells that each cell covers."""
  edges = np.arange(wanted + 1) * size / wanted
  cells = np.arange(size)
  low = np.maximum(edges[:-1, None], cells)
  high = np.minimum(edges[1:, None], cells + 1)
  return np.maximum(high - low, 0) * wanted / size


def layer_sizes(sd: StableDiffusion) -> list[tuple[int, ...]]:
  """Height and width of each level of the UNet in cells, the finest first."""
  sizes = [tuple(sd.latent_size)]
  for _ in sd.unet.config.block_out_channels[1:]:
    sizes.append(tuple(-(-side // 2) for side in sizes[-1]))
  return sizes


def layer_mask(
  mask: Bool[np.ndarray, "H W"], size: tuple[int, ...], resize: str
) -> Bool[np.ndarray, " q"]:
  """Resizes a mask to a layer's cells, flat.

  A mask that is not empty keeps at least the cell that it covers most.

  Args:
    mask: of any size.
    size: height and width of the layer.
    resize: "nearest" as in the release, or "area" for cells that the mask
      covers by half or more.
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
  """The hot part of a map.

  Otsu's threshold, without parts below 1 % of the map, plus a margin of a cell.
  """
  low, high = float(heat.min()), float(heat.max())
  if not high > low:
    return np.zeros(heat.shape, bool)
  heat = (heat - low) / (high - low)
  hot = heat > _otsu(heat.reshape(-1))
  # SciPy's type stubs are wrong about the results.
  ndimage: Any = scipy.ndimage
  labels, count = ndimage.label(hot)
  kept = np.bincount(labels.reshape(-1), minlength=count + 1)
  kept = kept >= 0.01 * heat.size
  kept[0] = False
  return ndimage.binary_dilation(kept[labels])


def _otsu(values: Float[np.ndarray, " n"]) -> float:
  """The threshold with the least variance within both sides."""
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
  """One map for each image, (m, h, w), at one timestep."""
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
  """Finds a concept's masks from the way the base denoises its images.

    attention  the attention that the phrase's tokens draw, in layers of medium
               size
    cfg_diff   |eps(x_t, prompt) - eps(x_t, prompt with the anchor)|

  Either is a mean over timesteps from 200 to 800, and is then segmented.

  Args:
    params: the base.
    latents: latents of the m images.
    states: text states of a prompt with the concept.
    anchor: text states of the same prompt with the anchor.
    phrase: which tokens of the first prompt are the concept's.
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
  """Checks a caller's masks and returns them as booleans.

  Raises:
    ValueError: a shape other than `shape`, (images, height, width); values
      other than 0 and 1, or 0 and 255; an empty mask.
  """
  masks = np.asarray(masks)
  if masks.shape != shape:
    raise ValueError(
      f"masks of {name!r}: shape {masks.shape}; allowed: {shape}, one mask of "
      "the image's size for each image"
    )
  values = set(np.unique(masks).tolist())
  if not (values <= {0, 1} or values <= {0, 255}):
    raise ValueError(
      f"masks of {name!r} hold {len(values)} values; allowed: 0 and 1, or 0 "
      "and 255. Save them without lossy compression"
    )
  empty = [i for i, mask in enumerate(masks) if not mask.any()]
  if empty:
    raise ValueError(
      f"masks of {name!r}: the mask of image {empty[0]} is empty"
    )
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
  """A concept's masks, and which images have a full mask in place of a bad one.

  A mask is bad if it covers less or more of its image than `AREA`.
  """
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
      f"{AREA[0]:.0%} or more than {AREA[1]:.0%} of them; their masks become "
      "the whole image",
      stacklevel=2,
    )
  return masks | bad[:, None, None], full


def for_layers(
  sd: StableDiffusion, masks: Sequence[Bool[np.ndarray, "H W"]], resize: str
) -> dict[int, Bool[np.ndarray, "m q"]]:
  """The masks at each level of the UNet, by its number of cells q."""
  return {
    size[0] * size[1]: np.stack(
      [layer_mask(mask, size, resize) for mask in masks]
    )
    for size in layer_sizes(sd)
  }
