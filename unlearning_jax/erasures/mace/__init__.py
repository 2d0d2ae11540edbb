"""MACE: Mass Concept Erasure in Diffusion Models (Lu et al., 2024).

Three stages, on the key and value projections W of the text alone.

(i) Closed-form refinement (eq. 1, 2). In prompts with the concept, every token
*but* the concept's own shall mean what it means beside the anchor; what is
preserved, e^p, shall mean what it did:

  min_W'  sum |W' e^f - W e^g|^2 + s sum |W' e^p - W e^p|^2 + lamb |W' - W|^2
  W' = W (I + X M^-1)
  X = sum (e^g - e^f) e^f^T,  C = sum e^p e^p^T
  M = sum e^f e^f^T + s C + lamb I

The same map for every layer, as UCE's.

(ii) One adapter dW = B D per concept (eq. 3 to 5), trained upon W' so that the
concept's tokens S draw no attention where the concept is:

  min_dW  E_t sum_l |A_l[:, S] . M_l|_F^2,   t ~ focal sampling

(iii) Closed-form fusion (eq. 7): one W* that acts as each adapter does on its
own concept's prompts e_i, all tokens, and as W on what is preserved:

  min_W*  sum_i |W* e_i - (W' + dW_i) e_i|^2 + s sum |W* e^p - W e^p|^2
          + lamb |W* - W'|^2
  W* = W' + [sum_i dW_i G_i + s (W - W') C] (sum_i G_i + s C + lamb I)^-1

Every layer gets another change. Both solves are float64, for the change; sums
are kept by concept (`Fusion`): to drop one, re-solve.

Reference: https://arxiv.org/abs/2403.06135
"""

from collections.abc import Sequence

from jaxtyping import PRNGKeyArray

from unlearning_jax.concepts import Concept, check_concepts
from unlearning_jax.edits import Edit, edit_between
from unlearning_jax.erasures import NO_HOOKS, Hooks
from unlearning_jax.erasures.mace import images as image
from unlearning_jax.erasures.mace import stages, suppress, text
from unlearning_jax.erasures.mace.fusion import STATISTICS as STATISTICS
from unlearning_jax.erasures.mace.fusion import Fusion as Fusion
from unlearning_jax.erasures.mace.fusion import load_fusion as load_fusion
from unlearning_jax.erasures.mace.options import Hparams as Hparams
from unlearning_jax.erasures.mace.stages import (
  preserved_gram as preserved_gram,
)
from unlearning_jax.stable_diffusion import Params, StableDiffusion

CHANGES = ("unet/*/attn2/to_[kv]/kernel",)
NEEDS = "images"


def erase(
  sd: StableDiffusion,
  params: Params,
  concepts: Sequence[Concept],
  key: PRNGKeyArray,
  h: Hparams,
  hooks: Hooks = NO_HOOKS,
) -> Edit:
  """Erases `concepts` by MACE; diagnostics say where each one's masks are from.

  Args:
    sd: the model.
    params: its parameters.
    concepts: of any tasks; what they preserve is the release's "domain".
    key: of images, adapters and noise; each concept draws from its own.
    h: the hyperparameters.
    hooks: `keep` is used.

  Raises:
    ValueError: a phrase, a file or an option is not usable; a system is not
      positive definite.
    FloatingPointError: an adapter's loss is not finite.
  """
  if h.focus:
    suppress.focal_law(sd.schedule.num_train_timesteps, *h.focus)
  check_concepts(concepts)
  h.check(concepts)
  text.check_phrases(sd.tokenizer, concepts)
  for concept in concepts:
    # Read once more when its turn comes: a hundred concepts' fill memory.
    image.given(sd, concept, h)
  said = stages.speak(sd, params, concepts, key, h)
  begun = stages.start(sd, params, concepts, said, h)
  whole, report = stages.train(sd, params, concepts, key, said, begun, h)
  erased, found = whole.solve(params, h.fusion)
  hooks.keep(whole)
  return edit_between(
    params,
    erased,
    method=f"mace {h.preset}",
    concepts=concepts,
    diagnostics={**found, "concepts": report},
  )
