"""The one batched sampler: requests to images, whoever asks.

for images in generate(sd, params, ["a star"], seeds=[0], guidance_scale=4.0):
  ...
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from unlearning_jax import guidance, stable_diffusion
from unlearning_jax.concepts import check_choice
from unlearning_jax.noise import SOURCES, row_noise
from unlearning_jax.schedules import SAMPLERS
from unlearning_jax.settings import Output
from unlearning_jax.stable_diffusion import Params, StableDiffusion


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How images are drawn.

  Attributes:
    num_inference_steps: denoising steps.
    guidance_scale: of classifier-free guidance; 1 or less leaves it out.
    sampler: another than the checkpoint's; None for its own.
    noise_source: `jax`, or `torch` for what torch's CPU generator draws.
  """

  num_inference_steps: Output[int] = 50
  guidance_scale: Output[float] = 7.5
  sampler: Output[str | None] = None
  noise_source: Output[str] = "jax"

  def __post_init__(self):
    if self.sampler is not None:
      check_choice("sampling.sampler", self.sampler, SAMPLERS)
    check_choice("sampling.noise_source", self.noise_source, SOURCES)


# What an image may be drawn with; a model has the rest.
OPTIONS = (*(f.name for f in dataclasses.fields(Sampling)), "batch_size")


class Request(NamedTuple):
  """An image to be made, of a text or, if given, of text states.

  Attributes:
    prompt: the text.
    seed: of its initial noise, which depends on nothing else.
    guidance: its own guidance scale; None for that of all.
    context: text states, drawn as they are: any edit has been applied to them.
  """

  prompt: str
  seed: int
  guidance: float | None = None
  context: Float[np.ndarray, "l d"] | None = None


def alike(requests: Sequence[Request], scale: float) -> list[list[int]]:
  """The places of requests that `draw` can take at once, group by group.

  Texts stand apart from text states, and what is not guided from what is.

  Args:
    requests: any.
    scale: the guidance scale of those that have none of their own.
  """
  groups: dict[tuple[bool, bool], list[int]] = {}
  for i, asked in enumerate(requests):
    own = scale if asked.guidance is None else asked.guidance
    groups.setdefault((asked.context is None, own > 1), []).append(i)
  return list(groups.values())


def draw(
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
) -> Iterator[UInt8[np.ndarray, "b H W 3"]]:
  """Images, a batch at a time; a row depends on nothing but itself.

  Args:
    sd: the model.
    params: its parameters.
    requests: what to draw; one group of `alike`.
    sampling: how.
    negative_prompt: steered away from.
    safe: Safe Latent Diffusion, see `guidance`.
    batch_size: rows in one compiled call; the last batch is padded.
    edit_context: applied to all text states, to sample a closed-form-edited
      model from the unedited one's weights.
    place: puts a batch's host arrays on the devices.
    fetch: brings the images of this process's rows back.

  Yields:
    uint8 images of the next requests.

  Raises:
    ValueError: requests that are not alike, a prompt too long, or an unusable
      option.
  """
  default = sampling.guidance_scale
  if len(alike(requests, default)) > 1:
    raise ValueError(
      "requests: texts beside text states, or guided beside unguided ones; "
      "draw one group of `sampling.alike` after the other"
    )
  texts = [r.prompt for r in requests if r.context is None]
  ids = stable_diffusion.tokenize(sd, texts)
  # Host arrays are moved once, not at every call.
  params = jax.tree.map(jnp.asarray, params)
  edit = edit_context or (lambda states: states)
  # Of requests without scales of their own one number, which serves all rows.
  own = [r.guidance for r in requests if r.guidance is not None]
  guided = guidance.contexts(
    functools.partial(stable_diffusion.encode_prompts, sd, params, edit=edit),
    own[0] if own else default,
    negative_prompt,
    safe,
  )
  for start in range(0, len(requests), batch_size):
    count = min(batch_size, len(requests) - start)
    rows = np.minimum(np.arange(start, start + batch_size), start + count - 1)
    padded = [requests[row] for row in rows]
    if texts:
      context = edit(stable_diffusion.encode_text(sd, params, place(ids[rows])))
    else:
      context = place(np.stack([r.context for r in padded]))
    scale = default
    if own:
      scales = [default if r.guidance is None else r.guidance for r in padded]
      scale = place(np.array(scales, np.float32))
    noise = row_noise(
      [r.seed for r in padded], sd.latent_shape, sampling.noise_source
    )
    images = stable_diffusion.sample(
      sd,
      params,
      context,
      noise=place(noise),
      **guided,
      num_inference_steps=sampling.num_inference_steps,
      guidance_scale=scale,
      sampler=sampling.sampler,
    )
    yield fetch(images)[:count]


def generate(
  sd: StableDiffusion,
  params: Params,
  prompts: Sequence[str],
  seeds: Sequence[int],
  **options: Any,
) -> Iterator[UInt8[np.ndarray, "b H W 3"]]:
  """`draw` of prompts, each with its seed.

  Args:
    sd: the model.
    params: its parameters.
    prompts: one for each row.
    seeds: one for each row.
    **options: of `draw`, and those of `Sampling` by name.

  Raises:
    ValueError: unequal lengths, or what `draw` refuses.
  """
  if len(prompts) != len(seeds):
    raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds")
  asked = [*map(Request, prompts, seeds)]
  own = [f.name for f in dataclasses.fields(Sampling) if f.name in options]
  sampling = Sampling(**{name: options.pop(name) for name in own})
  return draw(sd, params, asked, sampling, **options)
