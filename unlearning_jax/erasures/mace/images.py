"""MACE's training images: drawn by the base, or read from a folder."""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped, UInt8

from unlearning_jax import models, pictures, sampling
from unlearning_jax.concepts import Concept
from unlearning_jax.erasures.mace import masks as mask
from unlearning_jax.erasures.mace import text
from unlearning_jax.erasures.mace.options import Hparams
from unlearning_jax.stable_diffusion import Params, StableDiffusion

Masks = UInt8[np.ndarray, "m H W"] | Bool[np.ndarray, "m H W"] | None
PIXELS = ("vae", "reference")
_ENDINGS = {".png", ".jpg", ".jpeg", ".webp"}


def draw(
  sd: StableDiffusion,
  params: Params,
  prompt: str,
  count: int,
  key: PRNGKeyArray,
  **options: Any,
) -> UInt8[np.ndarray, "m H W 3"]:
  """Draws `count` images of one prompt, with options of `sampling.generate`."""
  bits = jax.random.bits(key, (count,))
  batches = sampling.generate(
    sd, params, [prompt] * count, [int(seed) for seed in bits], **options
  )
  return np.concatenate(list(batches))


def read(folder: str | pathlib.Path, name: str) -> UInt8[np.ndarray, "m H W 3"]:
  """Reads a concept's images, `<folder>/<name>/*`, in the order of their names.

  Raises:
    ValueError: no such folder, no images, or images of several sizes.
  """
  here = pathlib.Path(folder) / name
  files = sorted(here.glob("*")) if here.is_dir() else []
  files = [file for file in files if file.suffix.lower() in _ENDINGS]
  if not files:
    raise ValueError(
      f"data: no images of {name!r} in {here}; allowed: {sorted(_ENDINGS)}"
    )
  return _stack(
    [np.asarray(pictures.read(f).convert("RGB")) for f in files], here
  )


def read_masks(
  folder: str | pathlib.Path, name: str
) -> UInt8[np.ndarray, "m H W"]:
  """Reads a concept's masks, `<folder>/<name>/masks/*.png`, like `read`."""
  here = pathlib.Path(folder) / name / "masks"
  files = sorted(here.glob("*.png"))
  if not files:
    raise ValueError(
      f"mask_source='png': no masks of {name!r}; put them at {here}/*.png"
    )
  return _stack(
    [np.asarray(pictures.read(f).convert("L")) for f in files], here
  )


def _stack(images: list[np.ndarray], where: pathlib.Path) -> np.ndarray:
  sizes = sorted({image.shape[:2] for image in images})
  if len(sizes) > 1:
    raise ValueError(
      f"data: images of several sizes in {where}: {sizes}; give one size"
    )
  return np.stack(images)


def check_images(
  sd: StableDiffusion, images: Shaped[np.ndarray, "m H W 3"], name: str
) -> UInt8[np.ndarray, "m H W 3"]:
  """Checks a caller's images.

  Raises:
    ValueError: they are not uint8 RGB of the model's size.
  """
  images = np.asarray(images)
  factor = 2 ** (len(sd.vae.config.block_out_channels) - 1)
  wanted = tuple(factor * side for side in sd.latent_size) + (3,)
  if images.dtype != np.uint8 or images.shape[1:] != wanted or not len(images):
    raise ValueError(
      f"images of {name!r}: {images.dtype} {images.shape}; allowed: uint8 "
      f"(m, {', '.join(map(str, wanted))})"
    )
  return images


def given(
  sd: StableDiffusion, concept: Concept, source: Hparams
) -> tuple[UInt8[np.ndarray, "m H W 3"], Masks, str] | None:
  """A concept's images, their masks or None, and "given" or "data".

  Returns None if the base is to draw them.

  Raises:
    ValueError: missing or unusable images or masks.
  """
  phrase, masks = concept.erase, None
  if source.examples is not None:
    (images, masks), origin = source.examples[phrase], "given"
  elif source.data is not None:
    images, origin = read(source.data, phrase), "data"
    if source.source_of(concept) == "png":
      masks = read_masks(source.data, phrase)
  else:
    return None
  images = check_images(sd, images, phrase)
  if masks is not None:
    masks = mask.check_given(masks, images.shape[:3], phrase)
  return images, masks, origin


def examples(
  sd: StableDiffusion,
  params: Params,
  concept: Concept,
  source: Hparams,
  key: PRNGKeyArray,
) -> tuple[UInt8[np.ndarray, "m H W 3"], Masks, str]:
  """As `given`; draws the images if there are none, with origin "drawn"."""
  there = given(sd, concept, source)
  if there is not None:
    return there
  templates = source.templates or text.TEMPLATES
  images = draw(
    sd,
    params,
    templates[concept.task][0].format(concept.erase),
    source.num_images,
    key,
    num_inference_steps=source.num_inference_steps,
    guidance_scale=source.guidance_scale,
    sampler="dpm++2m",
  )
  return images, None, "drawn"


def encode_images(
  sd: StableDiffusion,
  params: Params,
  images: Shaped[np.ndarray, "m H W 3"],
  pixels: str,
) -> tuple[Float[np.ndarray, "m h w c"], Float[np.ndarray, "m h w c"]]:
  """Mean and standard deviation of the images' latents, scaled.

  Args:
    params: the base.
    images: uint8 or float, 0 to 255.
    pixels: "vae" for the range [-1, 1] that the autoencoder was trained on, or
      "reference" for ImageNet's normalization, as in the release.
  """
  center, spread = (0.5,) * 3, (0.5,) * 3
  if pixels == "reference":
    center, spread = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
  values = (np.asarray(images, np.float32) / 255 - center) / spread
  mean, std = _moments(sd, params["vae"], jnp.asarray(values, jnp.float32))
  return np.asarray(mean), np.asarray(std)


@functools.partial(jax.jit, static_argnames="sd")
def _moments(sd: StableDiffusion, vae: Params, images: Array):
  mean, logvar = models.apply(sd.vae, vae, images, method="encode")
  scale = sd.vae.config.scaling_factor
  return mean * scale, jnp.exp(logvar / 2) * scale
