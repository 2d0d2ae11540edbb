"""The losses that train the Shapes world's tiny Stable Diffusion."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from unlearning_jax import models
from unlearning_jax.models import (
  AutoencoderKL,
  ClipTextModel,
  UNet2DCondition,
)
from unlearning_jax.schedules import Schedule, add_noise
from unlearning_jax.shapes.tower import Projections
from unlearning_jax.stable_diffusion import Params

Batch = Mapping[str, Array]
Metrics = dict[str, Float[Array, ""]]


def vae_loss(
  vae: AutoencoderKL,
  params: Params,
  frozen: object,
  batch: Batch,
  key: PRNGKeyArray,
  *,
  edge_weight: float,
  kl_weight: float,
) -> tuple[Float[Array, ""], Metrics]:
  """|x - x'| + edge_weight |grad x - grad x'| + kl_weight KL(q || N(0, 1)).

  Differences between neighboring pixels replace a perceptual network. They keep
  outlines and textures crisp, and no classifier takes part in the training.
  """
  del frozen
  images = batch["images"].astype(jnp.float32) / 127.5 - 1
  mean, logvar = models.apply(vae, params, images, method="encode")
  latents = mean + jnp.exp(logvar / 2) * jax.random.normal(key, mean.shape)
  decoded = models.apply(vae, params, latents, method="decode")
  error = decoded - images
  edges = jnp.abs(jnp.diff(error, axis=1)).mean()
  edges += jnp.abs(jnp.diff(error, axis=2)).mean()
  pixels = jnp.abs(error).mean()
  kl = 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar).mean()
  mse = jnp.square(error / 2).mean()
  psnr = -10 * jnp.log10(mse)
  total = pixels + edge_weight * edges + kl_weight * kl
  return total, {"pixels": pixels, "edges": edges, "kl": kl, "psnr": psnr}


def clip_loss(
  text_encoder: ClipTextModel,
  projections: Projections,
  params: Params,
  frozen: object,
  batch: Batch,
  key: PRNGKeyArray,
) -> tuple[Float[Array, ""], Metrics]:
  """Symmetric contrastive loss between captions and images.

  The images get a little noise, so that the tower does not rely on single
  pixels, which generated images do not reproduce.
  """
  del frozen
  images = batch["images"].astype(jnp.float32) / 127.5 - 1
  images += 0.1 * jax.random.normal(key, images.shape)
  _, pooled = models.apply(text_encoder, params["text_encoder"], batch["ids"])
  image, text, scale = models.apply(projections, params["clip"], images, pooled)
  # CLIP's own bound on the temperature.
  logits = jnp.exp(jnp.minimum(scale, jnp.log(100.0))) * image @ text.T
  by_image = -jnp.diag(jax.nn.log_softmax(logits, axis=1)).mean()
  by_text = -jnp.diag(jax.nn.log_softmax(logits, axis=0)).mean()
  right = (logits.argmax(1) == jnp.arange(len(logits))).mean()
  return (by_image + by_text) / 2, {"right": right, "scale": jnp.exp(scale)}


def unet_loss(
  unet: UNet2DCondition,
  schedule: Schedule,
  params: Params,
  frozen: Float[Array, "1 l d"],
  batch: Batch,
  key: PRNGKeyArray,
  *,
  snr_gamma: float,
  caption_dropout: float,
) -> tuple[Float[Array, ""], Metrics]:
  """The predicted noise's squared error, weighted by min(SNR, gamma) / SNR.

  Args:
    unet: the network, which predicts the noise.
    schedule: its noise schedule.
    frozen: text states of the empty prompt, (1, l, d).
    batch: `mean` and `std` of the latents' posterior, scaled, and `context`.
    key: draws latents, noise, timesteps and dropped captions.
    snr_gamma: gamma, the SNR above which the weight falls.
    caption_dropout: the share of rows with the empty prompt.
  """
  keys = jax.random.split(key, 4)
  mean, std = (batch[n].astype(jnp.float32) for n in ("mean", "std"))
  latents = mean + std * jax.random.normal(keys[0], mean.shape)
  noise = jax.random.normal(keys[1], mean.shape)
  rows = len(mean)
  # A timestep from each stratum: the same distribution with less variance.
  strata = (jnp.arange(rows) + jax.random.uniform(keys[2], (rows,))) / rows
  t = (strata * schedule.num_train_timesteps).astype(jnp.int32)
  noisy = add_noise(schedule, latents, noise, t)
  dropped = jax.random.uniform(keys[3], (rows, 1, 1)) < caption_dropout
  context = jnp.where(dropped, frozen, batch["context"].astype(jnp.float32))
  predicted = models.apply(unet, params, noisy, t, context)
  alphas = jnp.asarray(schedule.alphas_cumprod)[t]
  snr = alphas / (1 - alphas)
  errors = jnp.square(predicted - noise).mean(axis=(1, 2, 3))
  weights = jnp.minimum(snr, snr_gamma) / snr
  return (weights * errors).mean(), {"mse": errors.mean()}
