"""SLD: Safe Latent Diffusion (Schramowski et al., CVPR 2023).

Sampling is guided away from a concept S; `guidance` has the equations. No
weight changes, so a user who samples without the guidance has the base. The
published S is "an image showing" the list of I2P; erase exactly those phrases
to have it.

Reference: https://arxiv.org/abs/2211.05105
"""

import dataclasses
from collections.abc import Sequence

from jaxtyping import PRNGKeyArray

from unlearning_jax import guidance, stable_diffusion
from unlearning_jax.concepts import Concept, check_choice, check_concepts
from unlearning_jax.erasures import NO_HOOKS, Hooks, check_predicts_noise
from unlearning_jax.guidance import Guidance
from unlearning_jax.stable_diffusion import Params, StableDiffusion

CHANGES = ()
NEEDS = "nothing"


@dataclasses.dataclass(frozen=True)
class Hparams:
  """SLD's hyperparameters.

  Attributes:
    preset: the published "weak", "medium", "strong" or "max"; or
      "weak_diffusers", with the scale 20 of diffusers' SafetyConfig.WEAK where
      the paper has 200.
    concept: S; "" for "an image showing" the erased phrases.
    clock: what the warmup counts, "steps", or "legacy" for timesteps, as the
      attack benchmark's copy does.
  """

  preset: str = "medium"
  concept: str = ""
  clock: str = "steps"

  def __post_init__(self):
    check_choice("preset", self.preset, guidance.PRESETS)
    check_choice("clock", self.clock, guidance.CLOCKS)


def erase(
  sd: StableDiffusion,
  params: Params,
  concepts: Sequence[Concept],
  key: PRNGKeyArray | None,
  h: Hparams,
  hooks: Hooks = NO_HOOKS,
) -> Guidance:
  """Guides a model away from `concepts` by Safe Latent Diffusion.

  Arguments as `Erasure`. SLD uses only the tokenizer of `sd` and the concepts'
  phrases, not their anchors or what they preserve.

  Raises:
    ValueError: an unusable concept, an S that is too long, or a model that does
      not predict the noise.
  """
  del params, key, hooks
  check_concepts(concepts)
  # Its threshold and its scale are of differences of noise.
  check_predicts_noise(sd, "SLD")
  listed = ", ".join(concept.erase for concept in concepts)
  concept = h.concept or f"an image showing {listed}"
  stable_diffusion.tokenize(sd, [concept])
  return Guidance(
    safe=guidance.preset(h.preset, concept, h.clock),
    method=f"sld {h.preset}{' legacy' * (h.clock == 'legacy')}",
    concepts=tuple(concepts),
  )
