"""Stable Diffusion as a static bundle of networks and pure functions of it.

  sd, params = load("path/to/folder")
  states = encode_prompts(sd, params, ["a red star"])

`sampling` draws images of prompts.

`StableDiffusion` holds no arrays, so it is a static argument of jit. Parameters
are a plain tree {text_encoder, unet, vae} and always an argument.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped, UInt8

from unlearning_jax import (
  convert,
  durable,
  guidance,
  models,
  samplers,
  sharding,
)
from unlearning_jax.convert import families, names, reader
from unlearning_jax.models import fast
from unlearning_jax.schedules import SAMPLERS, Schedule, warn_of_sampler
from unlearning_jax.tokens import Tokenizer, fitting

Params = dict[str, Any]

# torch's StableDiffusionPipeline sets these when it opens a folder, whatever
# the scheduler's file says. All published images were made so.
_PIPELINE_FORCES = {"steps_offset": 1, "clip_sample": False}
# Pixels from which a device decodes one image at a time. The decoder of one of
# 512 x 512 needs 1 GiB, and fills any device alone.
_LARGE = 256 * 256


@dataclasses.dataclass(frozen=True)
class StableDiffusion:
  """Networks, noise schedule and tokenizer of one checkpoint.

  Attributes:
    text_encoder: always computes in float32.
    schedule: noise levels, and the sampler that the checkpoint names.
    latent_size: height and width of the latents in training.
    tokenizer: used outside jit only; equality ignores it.
    files: configs and tokenizer folder, to write the model out again.
  """

  text_encoder: models.ClipTextModel
  unet: models.UNet2DCondition
  vae: models.AutoencoderKL
  schedule: Schedule
  latent_size: tuple[int, int]
  tokenizer: Tokenizer = dataclasses.field(compare=False, repr=False)
  files: convert.ModelFiles = dataclasses.field(compare=False, repr=False)

  @property
  def latent_shape(self) -> tuple[int, int, int]:
    """Height, width and channels of one image's latents."""
    return (*self.latent_size, self.unet.config.in_channels)

  @property
  def context_shape(self) -> tuple[int, int]:
    """Tokens and width of one prompt's text states."""
    config = self.text_encoder.config
    return config.max_position_embeddings, config.hidden_size


def load(
  path: str | os.PathLike[str],
  *,
  dtype: DTypeLike = jnp.float32,
  attention: str = "auto",
  kernels: str = "exact",
) -> tuple[StableDiffusion, Params]:
  """Reads a model: a diffusers folder or a hub id `owner/name[@revision]`.

  Args:
    dtype: of the UNet's and the VAE's computation; parameters stay float32.
    attention: "auto", "dense", "chunked" or "cudnn", see `models.attention`.
    kernels: "exact", or "fast" on a CPU, see `models.fast`.

  Raises:
    ValueError: the model cannot be read whole; the message names the file.
  """
  # Refused before gigabytes are read, because a file has no tokenizer.
  if os.path.isfile(path):
    kind = families.of_file(path)
    families.check(kind, os.fspath(path))
    raise ValueError(
      f"model={os.fspath(path)}: is {kind.text}, and a file has no tokenizer; "
      f"make a folder of it: {families.filled(families.TO_FOLDER, path)}"
    )
  # A tensor at a time: no second copy of the model is ever held.
  files = convert.load(path, read=reader.read_lazily)
  with durable.explaining(path, "its parts make no model", values=False):
    return from_files(files, dtype=dtype, attention=attention, kernels=kernels)


def from_files(
  files: convert.ModelFiles,
  *,
  dtype: DTypeLike = jnp.float32,
  attention: str = "auto",
  kernels: str = "exact",
) -> tuple[StableDiffusion, Params]:
  """The bundle and the host parameters of a model that was read.

  Raises:
    ValueError: as `load`; the parts do not fit each other.
  """
  if files.tokenizer is None:
    raise ValueError(
      "model: a single file has no tokenizer; read it over a base"
    )
  # The import takes half a second.
  from transformers import CLIPTokenizer

  configs = files.configs
  fast.check(kernels)
  how = {"dtype": fast.computed_dtype(dtype, kernels), "kernels": kernels}
  size = configs["unet"].get("sample_size") or 64
  try:
    tokenizer = CLIPTokenizer.from_pretrained(str(files.tokenizer))
  # The library raises this very class of a damaged file.
  except Exception as error:
    raise ValueError(
      f"{files.tokenizer}: not a readable tokenizer: {error}"
    ) from error
  sd = StableDiffusion(
    text_encoder=models.ClipTextModel.from_config(configs["text_encoder"]),
    unet=models.UNet2DCondition.from_config(
      configs["unet"], attention=attention, lean=fast.has_accelerator(), **how
    ),
    vae=models.AutoencoderKL.from_config(configs["vae"], **how),
    schedule=Schedule.of_folder(configs["scheduler"] | _PIPELINE_FORCES),
    latent_size=(size, size) if isinstance(size, int) else tuple(size),
    tokenizer=tokenizer,
    files=dataclasses.replace(files, states={}),
  )
  if sd.schedule.sampler not in SAMPLERS:
    logging.info(
      "the model's own sampler, %s, is not drawn with here; its noise levels "
      "are read", sd.schedule.sampler,
    )  # fmt: skip
  parts = (sd.text_encoder.config, sd.unet.config, sd.vae.config)
  models.check_parts_fit(*parts, tokens=len(sd.tokenizer))
  return sd, convert.to_params(files)


def save(
  sd: StableDiffusion,
  params: Params,
  path: str | os.PathLike[str],
  *,
  dtype: str = "float32",
  overwrite: bool = False,
):
  """Writes a diffusers folder; see `convert.save_folder`."""
  states = {part: names.torch_views(tree) for part, tree in params.items()}
  files = dataclasses.replace(sd.files, states=states)
  convert.save_folder(path, files, dtype=dtype, overwrite=overwrite)


def tokenize(
  sd: StableDiffusion, prompts: Sequence[str], *, truncate: bool = False
) -> Int[np.ndarray, "b l"]:
  """Token ids, int32, padded to the text encoder's length.

  Raises:
    ValueError: a prompt is too long, without `truncate`.
  """
  length, texts = sd.context_shape[0], list(prompts)
  # The tokenizer itself fails on an empty list.
  rows = sd.tokenizer(texts, truncation=False)["input_ids"] if texts else []
  rows = fitting(sd.tokenizer, texts, rows, length, truncate=truncate)
  pad = sd.tokenizer.pad_token_id
  padded = [row + [pad] * (length - len(row)) for row in rows]
  return np.array(padded, np.int32).reshape(-1, length)


def encode_text(
  sd: StableDiffusion,
  params: Params,
  ids: Int[Array, "b l"] | Int[np.ndarray, "b l"],
) -> Float[Array, "b l d"]:
  """Text states in float32, at the highest matmul precision.

  Closed-form edits invert Grams of them: a TF32 or bfloat16 matmul here would
  change the edit by percents.
  """
  return _encode_text(sd.text_encoder, params["text_encoder"], ids)


def encode_prompts(
  sd: StableDiffusion,
  params: Params,
  prompts: Sequence[str],
  edit: Callable[[Array], Array] | None = None,
) -> Float[Array, "b l d"]:
  """`encode_text` of texts, then `edit`, the context map of a closed form."""
  states = encode_text(sd, params, tokenize(sd, prompts))
  return edit(states) if edit else states


@functools.partial(jax.jit, static_argnums=0)
def _encode_text(
  text_encoder: models.ClipTextModel, params: Params, ids: Array
):
  with jax.default_matmul_precision("highest"):
    return models.apply(text_encoder, params, ids)[0]


def predict_noise(
  sd: StableDiffusion,
  params: Params,
  latents: Float[Array, "b h w c"],
  t: Shaped[Array, "b"],
  context: Float[Array, "b l d"],
) -> Float[Array, "b h w c"]:
  """The UNet's output: noise, or velocity where the schedule says so."""
  return models.apply(sd.unet, params["unet"], latents, t, context)


def encode_images(
  sd: StableDiffusion,
  params: Params,
  images: Float[Array, "b H W 3"],
  key: PRNGKeyArray | None = None,
) -> Float[Array, "b h w c"]:
  """Scaled latents of images in [-1, 1]: a draw by `key`, or else the mean."""
  mean, logvar = models.apply(sd.vae, params["vae"], images, method="encode")
  if key is not None:
    mean += jnp.exp(logvar / 2) * jax.random.normal(key, mean.shape)
  return mean * sd.vae.config.scaling_factor


def decode(
  sd: StableDiffusion, params: Params, latents: Float[Array, "b h w c"]
) -> Float[Array, "b H W 3"]:
  """Images, nominally in [-1, 1], of scaled latents."""
  unscaled = latents / sd.vae.config.scaling_factor
  return models.apply(sd.vae, params["vae"], unscaled, method="decode")


def to_uint8(images: Float[Array, "b H W 3"]) -> UInt8[Array, "b H W 3"]:
  """[-1, 1] to 0..255, rounded."""
  return jnp.round(jnp.clip(images / 2 + 0.5, 0, 1) * 255).astype(jnp.uint8)


@functools.partial(
  jax.jit, static_argnames=("sd", "num_inference_steps", "sampler", "safe")
)
def _sample(
  sd, params, contexts, noise, scale, *, num_inference_steps, sampler, safe=None
):
  plan = samplers.make_sampler(sd.schedule, num_inference_steps, sampler)
  times, ways = jnp.asarray(plan.timesteps), len(contexts)
  # A row and its negative are neighbors. With one half of the batch for each,
  # they would lie on different devices.
  rows = jnp.stack(contexts, 1).reshape(-1, *contexts[0].shape[1:])

  def body(carry, i):
    state, momentum = carry
    latents = plan.scale(plan.latents(state), i)
    if ways > 1:
      latents = jnp.repeat(latents, ways, axis=0)
    t = jnp.full((len(latents),), times[i])
    out = predict_noise(sd, params, latents, t, rows)
    if ways > 1:
      out = out.reshape(-1, ways, *out.shape[1:])
      out, momentum = guidance.combine(out, scale, safe, momentum, i, times[i])
    return (plan.step(state, i, out), momentum), None

  start = plan.init(noise * plan.init_noise_sigma)
  nothing = None if safe is None else jnp.zeros_like(noise)
  steps = jnp.arange(len(times))
  (state, _), _ = jax.lax.scan(body, (start, nothing), steps)
  return plan.latents(state)


def sample_latents(
  sd: StableDiffusion,
  params: Params,
  context: Float[Array, "b l d"],
  negative_context: Float[Array, "#b l d"] | None,
  noise: Float[Array, "b h w c"],
  *,
  num_inference_steps: int = 50,
  guidance_scale: float | Float[Array, "b"] = 7.5,
  sampler: str | None = None,
  safe: guidance.Safe | None = None,
  safe_context: Float[Array, "#b l d"] | None = None,
) -> Float[Array, "b h w c"]:
  """Denoises with classifier-free guidance, as one doubled batch.

  eps = eps(negative) + guidance_scale (eps(context) - eps(negative))

  Args:
    context: text states of the prompts.
    negative_context: those of the negative (or empty) prompt; None leaves
      guidance out.
    noise: unit noise, which the sampler scales.
    num_inference_steps: denoising steps.
    guidance_scale: one for all rows, or one for each.
    sampler: a name of `schedules.SAMPLERS`; None for the checkpoint's own.
    safe: Safe Latent Diffusion, see `guidance`; triples the batch.
    safe_context: text states of its concept.

  Returns:
    Scaled latents, float32.

  Raises:
    ValueError: the sampler is unknown, cannot take so many steps, or `safe`
      comes without guidance or its concept.
  """
  guidance.check(safe, negative_context, safe_context)
  said = sd.files.configs.get("scheduler", {}) if sd.files else {}
  warn_of_sampler(sd.schedule, sampler, said)
  given = [negative_context, context, safe_context if safe else None]
  contexts = [
    jnp.broadcast_to(states, context.shape)
    for states in given
    if states is not None
  ]
  scale = jnp.asarray(guidance_scale, jnp.float32)
  return _sample(
    sd,
    {"unet": params["unet"]},
    contexts,
    noise,
    scale.reshape(-1, 1, 1, 1),
    num_inference_steps=num_inference_steps,
    sampler=sampler,
    safe=safe,
  )


def sample(
  sd: StableDiffusion,
  params: Params,
  context: Float[Array, "b l d"],
  negative_context: Float[Array, "#b l d"] | None,
  noise: Float[Array, "b h w c"],
  *,
  chips: int | None = None,
  **options: Any,
) -> tuple[UInt8[Array, "b H W 3"], Bool[Array, "b"]]:
  """`sample_latents`, then `decode_uint8`; their arguments.

  Returns:
    The images, and whether each was finite: uint8 shows NaN as black.
  """
  latents = sample_latents(
    sd, params, context, negative_context, noise, **options
  )
  return decode_uint8(sd, params, latents, chips=chips)


def decode_uint8(
  sd: StableDiffusion,
  params: Params,
  latents: Float[Array, "b h w c"],
  *,
  chips: int | None = None,
) -> tuple[UInt8[Array, "b H W 3"], Bool[Array, "b"]]:
  """Scaled latents as images, and whether each image was finite.

  Args:
    chips: devices that share the rows; None reads it off the latents.
  """
  chips = chips or sharding.row_shares(latents)
  scale = 2 ** (len(sd.vae.config.block_out_channels) - 1)
  large = math.prod(latents.shape[1:3]) * scale**2 >= _LARGE
  turns = len(latents) // chips if large else 1
  return _decode_uint8(sd, {"vae": params["vae"]}, latents, turns)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _decode_uint8(
  sd: StableDiffusion, params: Params, latents: Array, turns: int
) -> tuple[Array, Array]:
  def some(rows: Array) -> tuple[Array, Array]:
    images = decode(sd, params, rows)
    return to_uint8(images), jnp.isfinite(images).all((1, 2, 3))

  return sharding.in_turns(some, latents, turns)
