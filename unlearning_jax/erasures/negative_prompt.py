"""Negative prompts: classifier-free guidance away from a prompt.

The negative prompt n takes the place of the empty prompt in classifier-free
guidance (Ho and Salimans, 2022) of prompt p with scale g:

  eps = eps(n) + g (eps(p) - eps(n)) .

No weight changes, so a user who samples without n has the base. This is the
simplest baseline.

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
  """The negative prompt's hyperparameters.

  Attributes:
    prompt: n; "" joins the erased phrases with commas.
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
  """Guides a model away from `concepts` by a negative prompt.

  Arguments as `Erasure`. The method uses only the tokenizer of `sd` and the
  concepts' phrases, not their anchors or what they preserve.

  Raises:
    ValueError: an unusable concept, or a prompt that is too long.
  """
  del params, key, hooks
  check_concepts(concepts)
  prompt = h.prompt or ", ".join(concept.erase for concept in concepts)
  stable_diffusion.tokenize(sd, [prompt])
  return Guidance(
    negative_prompt=prompt, method="negative_prompt", concepts=tuple(concepts)
  )
