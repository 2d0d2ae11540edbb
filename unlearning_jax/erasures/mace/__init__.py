"""MACE: Mass Concept Erasure in Diffusion Models (Lu et al., 2024).

Three stages change the key and value projections W of the text, and nothing
else.

(i) Closed-form refinement (eq. 1, 2). In a prompt with the concept, every token
except the concept's own, e^f, takes the value of the same token in the prompt
with the anchor, e^g. Preserved tokens e^p keep their values:

  min_W'  sum |W' e^f - W e^g|^2 + s sum |W' e^p - W e^p|^2 + lamb |W' - W|^2
  W' = W (I + X M^-1)
  X = sum (e^g - e^f) e^f^T,  C = sum e^p e^p^T
  M = sum e^f e^f^T + s C + lamb I

All layers share the map I + X M^-1, as with UCE.

(ii) An adapter dW = B D for each concept (eq. 3 to 5). It trains on top of W',
so that the concept's tokens S draw no attention inside its mask M_l:

  min_dW  E_t sum_l |A_l[:, S] . M_l|_F^2,   t ~ focal sampling

(iii) Closed-form fusion (eq. 7). One W* acts like each adapter on all tokens
e_i of its own concept's prompts, and like W on preserved tokens:

  min_W*  sum_i |W* e_i - (W' + dW_i) e_i|^2 + s sum |W* e^p - W e^p|^2
          + lamb |W* - W'|^2
  W* = W' + [sum_i dW_i G_i + s (W - W') C] (sum_i G_i + s C + lamb I)^-1
  G_i = sum e_i e_i^T

Here each layer has a change of its own. Both systems are solved in float64, for
the change and not for the weights. `Fusion` keeps each concept's sums apart, so
that a re-solve can drop a concept.

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
  """Erases `concepts`, of any tasks, by MACE.

  Arguments as `Erasure`. What concepts preserve is the release's "domain". Each
  concept has a key of its own. MACE uses `hooks.keep`. Diagnostics say where
  each concept's masks came from.

  Raises:
    ValueError: an unusable phrase, file or option, or a system that is not
      positive definite.
    FloatingPointError: an adapter's loss is not finite.
  """
  if h.focus:
    suppress.focal_law(sd.schedule.num_train_timesteps, *h.focus)
  check_concepts(concepts)
  h.check(concepts)
  text.check_phrases(sd.tokenizer, concepts)
  for concept in concepts:
    # Checked now and read again later: a hundred concepts would fill memory.
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
