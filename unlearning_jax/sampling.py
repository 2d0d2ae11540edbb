"""The one batched sampler, which makes images of requests.

for images in generate(sd, params, ["a star"], seeds=[0], guidance_scale=4.0):
  ...
"""

import dataclasses
import functools
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from unlearning_jax import casting, guidance, stable_diffusion
from unlearning_jax.concepts import check_choice
from unlearning_jax.noise import SOURCES, row_noise
from unlearning_jax.schedules import SAMPLERS
from unlearning_jax.settings import Output
from unlearning_jax.stable_diffusion import Params, StableDiffusion

# What float32 holds.
_MOST = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How images are drawn.

  Attributes:
    num_inference_steps: denoising steps.
    guidance_scale: of classifier-free guidance; 1 or less leaves it out.
    sampler: a name of `schedules.SAMPLERS`; None for the checkpoint's own.
    noise_source: "jax", or "torch" for the noise of torch's CPU generator.
  """

  num_inference_steps: Output[int] = 50
  guidance_scale: Output[float] = 7.5
  sampler: Output[str | None] = None
  noise_source: Output[str] = "jax"

  def __post_init__(self):
    if self.sampler is not None:
      check_choice("sampling.sampler", self.sampler, SAMPLERS)
    check_choice("sampling.noise_source", self.noise_source, SOURCES)
    # Not a number fails this too.
    if not abs(self.guidance_scale) <= _MOST:
      raise ValueError(
        f"sampling.guidance_scale={self.guidance_scale}; allowed: finite "
        f"numbers up to {_MOST:.3g}, which float32 holds"
      )


Images = UInt8[np.ndarray, "b H W 3"]
Item = TypeVar("Item")
# Options that a caller may set; the model decides all others.
OPTIONS = (*(f.name for f in dataclasses.fields(Sampling)), "batch_size")


class Request(NamedTuple):
  """An image to be made of a text or, if given, of text states.

  Attributes:
    seed: of the initial noise, which depends on nothing else.
    guidance: its own guidance scale; None for that of the sampling.
    context: text states, taken as they are: no edit is applied to them.
    size: height and width of the image; None for the model's own.
    sample: which of several images that one generator draws after another.
    truncate: cut a long prompt at the text encoder's length, as diffusers does;
      else it is refused.
    latents: scaled latents that are denoised already; the image is what they
      decode to, and all of the above only names it.
  """

  prompt: str
  seed: int
  guidance: float | None = None
  context: Float[np.ndarray, "l d"] | None = None
  size: tuple[int, int] | None = None
  sample: int = 0
  truncate: bool = False
  latents: Float[np.ndarray, "h w c"] | None = None


def alike(requests: Sequence[Request], scale: float) -> list[list[int]]:
  """The indices of requests, in groups that `draw` can take at once.

  A group has texts, text states or denoised latents, is either guided or not,
  and has images of one size.

  Args:
    scale: the guidance scale of requests that have none of their own.
  """
  groups: dict[tuple[Any, ...], list[int]] = {}
  for i, asked in enumerate(requests):
    own = scale if asked.guidance is None else asked.guidance
    kind = (asked.context is None, own > 1, asked.size)
    if asked.latents is not None:
      kind = np.shape(asked.latents)
    groups.setdefault(kind, []).append(i)
  return list(groups.values())


def _ids(sd: StableDiffusion, requests: Sequence[Request]):
  spoken = [r for r in requests if r.context is None]
  cut = any(r.truncate for r in spoken)
  if cut:
    # One that may be cut does not let others be cut.
    stable_diffusion.tokenize(sd, [r.prompt for r in spoken if not r.truncate])
  # Who asks for it says once how many prompts are cut.
  with warnings.catch_warnings(action="ignore"):
    texts = [r.prompt for r in spoken]
    return stable_diffusion.tokenize(sd, texts, truncate=cut)


def latent_shape(
  sd: StableDiffusion, size: tuple[int, int] | None
) -> tuple[int, int, int]:
  """Latents of an image of so many pixels; None for the model's own.

  Raises:
    ValueError: the networks cannot draw that size.
  """
  if size is None:
    return sd.latent_shape
  pixels = 2 ** (len(sd.vae.config.block_out_channels) - 1)
  step = pixels * 2 ** (len(sd.unet.config.block_out_channels) - 1)
  if min(size) < step or any(side % step for side in size):
    raise ValueError(
      f"size {size[1]}x{size[0]}: the model draws multiples of {step} pixels"
    )
  return (size[0] // pixels, size[1] // pixels, sd.latent_shape[2])


def ahead(items: Iterable[Item]) -> Iterator[Item]:
  """Yields items; the next one is made before one is yielded."""
  for item, _ in itertools.pairwise(itertools.chain(items, [None])):
    yield item  # pyright: ignore[reportReturnType]


def draw(
  sd: StableDiffusion,
  params: Params,
  requests: Sequence[Request],
  sampling: Sampling = Sampling(),
  **options: Any,
) -> Iterator[Images]:
  """Draws images, a batch at a time; an image depends on its request alone.

  The device draws the next batch while the caller has this one.

  Args:
    requests: one group of `alike`.
    **options: of `start`.

  Yields:
    Images of the next requests.

  Raises:
    ValueError: as `start`.
    FloatingPointError: an image holds NaN or infinity.
  """
  for images in ahead(start(sd, params, requests, sampling, **options)):
    yield images()


def start(
  sd: StableDiffusion,
  params: Params,
  requests: Sequence[Request],
  sampling: Sampling = Sampling(),
  *,
  negative_prompt: str = "",
  safe: guidance.Safe | None = None,
  batch_size: int = 16,
  edit_context: Callable[[Array], Array] | None = None,
  place: Callable[[Any], Any] = jnp.asarray,
  fetch: Callable[[Any], np.ndarray] = np.asarray,
) -> Iterator[Callable[[], Images]]:
  """Starts to draw, a batch at a time, and does not wait for the images.

  Args:
    requests: one group of `alike`.
    negative_prompt: replaces the empty prompt of guidance.
    safe: Safe Latent Diffusion, see `guidance`.
    batch_size: rows in one compiled call; the last batch is padded.
    edit_context: maps the text states of all texts, as a context map does; the
      base's weights then draw as an edited model.
    place: puts a batch's host arrays on the devices.
    fetch: brings the images of this process's rows back.

  Yields:
    A function that waits for the images of the next requests; it raises
    FloatingPointError where one holds NaN or infinity.

  Raises:
    ValueError: requests are not alike, a prompt is too long, or an option
      cannot be used.
  """
  default = sampling.guidance_scale
  if len(alike(requests, default)) > 1:
    raise ValueError(
      "requests: one batch cannot mix texts with text states, guided with "
      "unguided ones, or sizes; draw one group of `sampling.alike` at a time"
    )
  if requests and requests[0].latents is not None:
    yield from _decoded(sd, params, requests, batch_size, place, fetch)
    return
  ids = _ids(sd, requests)
  shape = latent_shape(sd, requests[0].size if requests else None)
  # Otherwise every call would move host arrays to the device again.
  params = casting.on_device(sd, params)
  edit = edit_context or (lambda states: states)
  # Without a scale in any request, one number serves all rows.
  own = [r.guidance for r in requests if r.guidance is not None]
  guided = guidance.contexts(
    functools.partial(stable_diffusion.encode_prompts, sd, params, edit=edit),
    own[0] if own else default,
    negative_prompt,
    safe,
  )
  for rows, count in _batches(len(requests), batch_size):
    padded = [requests[row] for row in rows]
    if requests[0].context is None:
      context = edit(stable_diffusion.encode_text(sd, params, place(ids[rows])))
    else:
      context = place(np.stack([r.context for r in padded]))
    scale = default
    if own:
      scales = [default if r.guidance is None else r.guidance for r in padded]
      scale = place(np.array(scales, np.float32))
    noise = row_noise(
      [r.seed for r in padded], shape, sampling.noise_source,
      samples=[r.sample for r in padded],
    )  # fmt: skip
    images, finite = stable_diffusion.sample(
      sd, params, context, noise=place(noise),
      **guided,
      num_inference_steps=sampling.num_inference_steps,
      guidance_scale=scale,
      sampler=sampling.sampler,
    )  # fmt: skip
    yield functools.partial(_fetched, fetch, images, finite, padded[:count])


def _batches(total: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
  """Rows of each batch, its last repeated to fill it, and how many count."""
  for first in range(0, total, size):
    count = min(size, total - first)
    rows = np.arange(first, first + size)
    yield np.minimum(rows, first + count - 1), count


def _decoded(
  sd: StableDiffusion,
  params: Params,
  requests: Sequence[Request],
  batch_size: int,
  place: Callable[[Any], Any],
  fetch: Callable[[Any], np.ndarray],
) -> Iterator[Callable[[], Images]]:
  """`start` for latents that are denoised already."""
  params = {"vae": jax.tree.map(jnp.asarray, params["vae"])}
  for rows, count in _batches(len(requests), batch_size):
    padded = [requests[row] for row in rows]
    latents = place(np.stack([r.latents for r in padded]))
    images, finite = stable_diffusion.decode_uint8(sd, params, latents)
    yield functools.partial(_fetched, fetch, images, finite, padded[:count])


def _fetched(
  fetch: Callable[[Any], np.ndarray],
  images: Array,
  finite: Array,
  requests: Sequence[Request],
) -> Images:
  """The images of this process's requests, which must be finite."""
  _check_finite(fetch(finite)[: len(requests)], requests)
  return fetch(images)[: len(requests)]


def _check_finite(finite: Bool[np.ndarray, "b"], requests: Sequence[Request]):
  """Raises where an image is broken, or a judge would see nothing in it."""
  if not finite.all():
    asked = requests[int(np.argmin(finite))]
    raise FloatingPointError(
      f"draw: {int((~finite).sum())} of {len(finite)} images hold NaN or "
      f"infinity, such as that of {asked.prompt!r}, seed {asked.seed}. The "
      "weights or the guidance overflow: check the edit, lower "
      "sampling.guidance_scale, or use dtype=float32"
    )


def generate(
  sd: StableDiffusion,
  params: Params,
  prompts: Sequence[str],
  seeds: Sequence[int],
  **options: Any,
) -> Iterator[UInt8[np.ndarray, "b H W 3"]]:
  """`draw` for prompts, each with its seed.

  Args:
    **options: those of `draw`, and of `Sampling` by name.

  Raises:
    ValueError: lengths differ, or as `draw`.
  """
  if len(prompts) != len(seeds):
    raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds")
  asked = [*map(Request, prompts, seeds)]
  own = [f.name for f in dataclasses.fields(Sampling) if f.name in options]
  sampling = Sampling(**{name: options.pop(name) for name in own})
  return draw(sd, params, asked, sampling, **options)
