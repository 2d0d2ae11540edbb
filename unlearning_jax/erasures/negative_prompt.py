"""Negative prompts: images are steered away from what shall not appear.

In classifier-free guidance the prompt n stands in for the empty one:

  eps = eps(n) + g (eps(p) - eps(n)) .

No weight changes, and whoever samples can leave it out: the plainest baseline.

Reference: https://arxiv.org/abs/2207.12598
"""

import dataclasses
from collections.abc import Sequence

from jaxtyping import PRNGKeyArray

from unlearning_jax import stable_diffusion
from unlearning_jax.concepts import Concept, check_concepts
from unlearning_jax.erasures import NO_HOOKS, Hooks
from unlearning_jax.guidance import Guidance
from unlearning_jax.stable_diffusion import Params, StableDiffusion

CHANGES = ()
NEEDS = "nothing"


@dataclasses.dataclass(frozen=True)
class Hparams:
  """Hyperparameters of a negative prompt.

  Attributes:
    prompt: n; "" for the erased phrases, with commas between them.
  """

  prompt: str = ""


def erase(
  sd: StableDiffusion,
  params: Params,
  concepts: Sequence[Concept],
  key: PRNGKeyArray | None,
  h: Hparams,
  hooks: Hooks = NO_HOOKS,
) -> Guidance:
  """Keeps a model from `concepts` by a negative prompt.

  Args:
    sd: the model.
    params: unused, no weight changes.
    concepts: what shall not appear; anchors and what is preserved are unused.
    key: unused, nothing is drawn.
    h: the hyperparameters.
    hooks: unused, nothing takes long.

  Raises:
    ValueError: a concept that is not usable; a prompt that is too long.
  """
  del params, key, hooks
  check_concepts(concepts)
  prompt = h.prompt or ", ".join(concept.erase for concept in concepts)
  stable_diffusion.tokenize(sd, [prompt])
  return Guidance(
    negative_prompt=prompt, method="negative_prompt", concepts=tuple(concepts)
  )
