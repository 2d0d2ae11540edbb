"""The denoising loss of latent diffusion, on cached latents and text states."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from unlearning_jax import models, stable_diffusion
from unlearning_jax.data.batches import COUNT, FIRST
from unlearning_jax.finetune.loop import Metrics
from unlearning_jax.finetune.partition import Leaves
from unlearning_jax.schedules import add_noise, velocity


def denoising_loss(
  sd: stable_diffusion.StableDiffusion,
  params: stable_diffusion.Params,
  latents: Float[Array, "b h w c"],
  noise: Float[Array, "b h w c"],
  t: Int[Array, " b"],
  context: Float[Array, "b l d"],
  *,
  snr_gamma: float | None = None,
) -> tuple[Float[Array, ""], Metrics]:
  """Mean of w_t |f(x_t, t, c) - y|^2, y the noise or the velocity.

  With SNR_t = a_t / (1 - a_t) and a `snr_gamma` of g, w_t is min(SNR_t, g) /
  SNR_t for noise and min(SNR_t, g) / (SNR_t + 1) for velocity (Hang et al.,
  2023, https://arxiv.org/abs/2303.09556). Without a `snr_gamma`, it is 1.

  Returns:
    The loss, and the unweighted error as the metric `mse`.
  """
  schedule = sd.schedule
  noisy = add_noise(schedule, latents, noise, t)
  by_velocity = schedule.prediction_type == "v_prediction"
  wanted = velocity(schedule, latents, noise, t) if by_velocity else noise
  predicted = stable_diffusion.predict_noise(sd, params, noisy, t, context)
  errors = jnp.square(predicted - wanted).mean(axis=(1, 2, 3))
  weights = jnp.ones_like(errors)
  if snr_gamma is not None:
    alphas = jnp.asarray(schedule.alphas_cumprod)[t]
    snr = alphas / (1 - alphas)
    weights = jnp.minimum(snr, snr_gamma) / (snr + by_velocity)
  return (weights * errors).mean(), {"mse": errors.mean()}


def diffusion_loss(
  sd: stable_diffusion.StableDiffusion,
  join: Callable[[Any, Leaves], stable_diffusion.Params],
  trained: Leaves,
  frozen: Mapping[str, Any],
  batch: Mapping[str, Array],
  key: PRNGKeyArray,
  *,
  snr_gamma: float | None = None,
  caption_dropout: float = 0.0,
) -> tuple[Float[Array, ""], Metrics]:
  """`denoising_loss` at random latents, noise and timesteps.

  Args:
    join: makes parameters of `trained` and `frozen["params"]`, see `Partition`.
    trained: what is differentiated.
    frozen: `params`; `empty`, the text states (1, l, d) of the empty prompt, or
      its token ids (1, l) if the batch has ids.
    batch: rows of `encode_examples`: `mean` and `std` (b, k, h, w, c) of the
      scaled latents of k views of an image, and `context` (b, l, d), or `ids`
      (b, l) where the text encoder trains.
    key: draws views, latents, noise, timesteps and dropped captions.
    snr_gamma: see `denoising_loss`.
    caption_dropout: share of rows trained on the empty prompt.
  """
  params = join(trained, frozen["params"])
  keys = jax.random.split(key, 5)
  rows, views = batch["mean"].shape[:2]
  view = jax.random.randint(keys[0], (rows,), 0, views)
  # Row by row: an index over all rows would gather them on every device.
  pick = jax.vmap(lambda views, one: views[one])
  mean, std = (pick(batch[name], view) for name in ("mean", "std"))
  latents = mean + std * jax.random.normal(keys[1], mean.shape)
  noise = jax.random.normal(keys[2], mean.shape)
  t = jax.random.randint(keys[3], (rows,), 0, sd.schedule.num_train_timesteps)
  text = batch["ids"] if "ids" in batch else batch["context"]
  dropped = jax.random.uniform(keys[4], (rows,)) < caption_dropout
  dropped = dropped.reshape(-1, *[1] * (text.ndim - 1))
  text = jnp.where(dropped, frozen["empty"], text)
  if "ids" in batch:
    text = stable_diffusion.encode_text(sd, params, text)
  return denoising_loss(
    sd, params, latents, noise, t, text, snr_gamma=snr_gamma
  )


def encode_examples(
  sd: stable_diffusion.StableDiffusion,
  params: stable_diffusion.Params,
  images: UInt8[np.ndarray, "n H W 3"],
  captions: Sequence[str] | Sequence[Sequence[str]],
  *,
  flip: bool = False,
  token_ids: bool = False,
  batch_size: int = 16,
) -> dict[str, np.ndarray]:
  """What `diffusion_loss` reads of captioned images, computed once.

  It keeps the posterior's moments, so that every step draws new latents, as if
  the VAE were in the loop.

  Args:
    params: those of the VAE and the text encoder are read.
    images: at the size to train at.
    captions: each image's caption, or its captions.
    flip: whether each image's mirror image is a second view.
    token_ids: whether to keep token ids instead of text states.
    batch_size: images or captions encoded at a time.

  Returns:
    `mean` and `std` (n, k, h, w, c) of the scaled latents of k views, and
    `context` (n, l, d) or `ids` (n, l); float32 and int32. Where images have
    several captions these have a row for each caption, and `first_caption` and
    `captions` (n,) say which are an image's, as `data.Batches` reads them.

  Raises:
    ValueError: counts differ, or a caption is too long.
  """
  if len(images) != len(captions):
    raise ValueError(f"{len(images)} images with {len(captions)} captions")
  every = [(one,) if isinstance(one, str) else tuple(one) for one in captions]
  texts = [text for own in every for text in own]
  ids = stable_diffusion.tokenize(sd, texts)
  counts = np.array([len(own) for own in every], np.int64)
  several = {}
  if len(texts) != len(images):
    several = {FIRST: np.cumsum(counts) - counts, COUNT: counts}
  scale = sd.vae.config.scaling_factor

  @jax.jit
  def moments(vae: stable_diffusion.Params, batch: Array):
    pixels = batch.astype(jnp.float32) / 127.5 - 1
    mean, logvar = models.apply(sd.vae, vae, pixels, method="encode")
    return scale * mean, scale * jnp.exp(logvar / 2)

  def encode(views: np.ndarray) -> tuple[np.ndarray, ...]:
    parts = [
      moments(params["vae"], rows) for rows in _batches(views, batch_size)
    ]
    return tuple(
      np.concatenate([np.asarray(p) for p in part])[: len(views)]
      for part in zip(*parts, strict=True)
    )

  views = [images, images[:, :, ::-1]] if flip else [images]
  encoded = [encode(view) for view in views]
  mean, std = (np.stack(part, 1) for part in zip(*encoded, strict=True))
  if token_ids:
    return {"mean": mean, "std": std, "ids": ids, **several}
  states = [
    np.asarray(stable_diffusion.encode_text(sd, params, rows))
    for rows in _batches(ids, batch_size)
  ]
  context = np.concatenate(states)[: len(ids)]
  return {"mean": mean, "std": std, "context": context, **several}


def _batches(rows: np.ndarray, size: int):
  """Batches of one size, for one program; the last repeats its last row."""
  for start in range(0, len(rows), size):
    yield rows[np.minimum(np.arange(start, start + size), len(rows) - 1)]
