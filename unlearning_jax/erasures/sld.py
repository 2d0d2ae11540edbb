"""SLD: Safe Latent Diffusion (Schramowski et al., CVPR 2023).

The model is guided away from a concept S while it samples; `guidance` has the
equations. No weight changes: whoever samples can leave it out. The published
models are kept from what I2P lists, which is what S is when exactly those
phrases are erased.

Reference: https://arxiv.org/abs/2211.05105
"""

import dataclasses
from collections.abc import Sequence

from jaxtyping import PRNGKeyArray

from unlearning_jax import guidance, stable_diffusion
from unlearning_jax.concepts import Concept, check_choice, check_concepts
from unlearning_jax.erasures import NO_HOOKS, Hooks
from unlearning_jax.guidance import Guidance
from unlearning_jax.stable_diffusion import Params, StableDiffusion

CHANGES = ()
NEEDS = "nothing"


@dataclasses.dataclass(frozen=True)
class Hparams:
  """SLD's hyperparameters.

  Attributes:
    preset: "weak", "medium", "strong" or "max", as published.
    concept: S; "" for "an image showing" the erased phrases, as published.
  """

  preset: str = "medium"
  concept: str = ""

  def __post_init__(self):
    check_choice("preset", self.preset, guidance.PRESETS)


def erase(
  sd: StableDiffusion,
  params: Params,
  concepts: Sequence[Concept],
  key: PRNGKeyArray | None,
  h: Hparams,
  hooks: Hooks = NO_HOOKS,
) -> Guidance:
  """Keeps a model from `concepts` by Safe Latent Diffusion.

  Args:
    sd: the model.
    params: unused, no weight changes.
    concepts: what shall not appear; anchors and what is preserved are unused.
    key: unused, nothing is drawn.
    h: the hyperparameters.
    hooks: unused, nothing takes long.

  Raises:
    ValueError: a concept that is not usable; an S that is too long.
  """
  del params, key, hooks
  check_concepts(concepts)
  listed = ", ".join(concept.erase for concept in concepts)
  concept = h.concept or f"an image showing {listed}"
  stable_diffusion.tokenize(sd, [concept])
  return Guidance(
    safe=guidance.preset(h.preset, concept),
    method=f"sld {h.preset}",
    concepts=tuple(concepts),
  )
