"""The one batched sampler: requests to images, whoever asks."""

import dataclasses

from unlearning_jax.concepts import check_choice
from unlearning_jax.noise import SOURCES
from unlearning_jax.schedules import SAMPLERS
from unlearning_jax.settings import Output


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How images are drawn.

  Attributes:
    num_steps: denoising steps.
    guidance_scale: of classifier-free guidance; 1 or less leaves it out.
    sampler: another than the checkpoint's; None for its own.
    noise_source: `jax`, or `torch` for what torch's CPU generator draws.
  """

  num_steps: Output[int] = 50
  guidance_scale: Output[float] = 7.5
  sampler: Output[str | None] = None
  noise_source: Output[str] = "jax"

  def __post_init__(self):
    if self.sampler is not None:
      check_choice("sampling.sampler", self.sampler, SAMPLERS)
    check_choice("sampling.noise_source", self.noise_source, SOURCES)
