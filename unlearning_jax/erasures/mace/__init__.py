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
are kept by concept (`Fusion`): to drop one, or add a `foreign_part`, re-solve.

Reference: https://arxiv.org/abs/2403.06135
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxtyping import Array

from unlearning_jax import closed_form
from unlearning_jax.concepts import Concept, check_concepts
from unlearning_jax.edits import Edit, edit_between
from unlearning_jax.erasures.mace import images as image
from unlearning_jax.erasures.mace import options, stages, suppress, text
from unlearning_jax.erasures.mace.fusion import STATISTICS as STATISTICS
from unlearning_jax.erasures.mace.fusion import (
  Fusion,
  Part,
  check_adapters,
)
from unlearning_jax.erasures.mace.fusion import load_fusion as load_fusion
from unlearning_jax.erasures.mace.stages import (
  preserved_gram as preserved_gram,
)
from unlearning_jax.lora import Adapters
from unlearning_jax.projections import cross_attention_kernels


def erase(
  sd: Any,
  params: Any,
  concepts: Sequence[Concept],
  key: Array,
  *,
  preset: str = "fixed",
  recipe: str | Mapping[str, str] | None = None,
  rank: int = 1,
  learning_rate: float | None = None,
  num_steps: int | None = None,
  batch_size: int = 1,
  focus: Sequence[float] = (200, 400, 0.05),
  loss_form: str | None = None,
  target_tokens: str | None = None,
  mask_source: str = "attention",
  data: str | None = None,
  examples: Mapping[str, tuple[Any, Any]] | None = None,
  num_images: int = 8,
  image_steps: int = 30,
  guidance_scale: float = 7.5,
  templates: Mapping[str, Sequence[str]] | None = None,
  num_prompts: int = 30,
  captions: str | Sequence[str] | None = None,
  cache: str | None = None,
  domain_weight: float = 1.0,
  preserve_scale: float = 1.0,
  fuse_scale: float = 1.0,
  lamb: float = 10.0,
  fusion: str = "closed_form",
  pack: int = 1,
  keep: Callable[[Fusion], None] | None = None,
) -> Edit:
  """Erases `concepts` by MACE; diagnostics say where each one's masks are from.

  Args:
    sd: the model.
    params: its parameters.
    concepts: of any tasks; what they preserve is the release's "domain".
    key: of images, adapters and noise; each concept draws from its own.
    preset: "fixed", or "reference" for the release's quirks, see `options`.
    recipe: of `options.RECIPES` for all concepts, or one by phrase. Where none
      is told it is the task's: for people, who are objects, say "identity".
    rank: of the adapters.
    learning_rate: instead of the recipe's.
    num_steps: likewise.
    batch_size: images in a step, averaged.
    focus: t1, t2, gamma of the focal sampling; empty for uniform sampling.
    loss_form: "squared" or "norm", instead of the preset's.
    target_tokens: S, instead of the preset's.
    mask_source: of `masks.SOURCES`; styles are always "full".
    data: a folder of images, see `images.read`.
    examples: instead, by phrase: images uint8, and masks or None.
    num_images: to draw, where none are given.
    image_steps: of drawing one.
    guidance_scale: of drawing one.
    templates: sentences by task, the first draws the images; None for our own.
    num_prompts: templates for each concept, drawn among its task's.
    captions: what is preserved besides, all tokens: texts, or a file of lines.
      However many, they weigh together what the concepts' own rows do; in
      "reference" each token weighs 1.
    cache: a folder that keeps what sums of captions come to.
    domain_weight: of each token that the concepts preserve.
    preserve_scale: s of the refinement.
    fuse_scale: s of the fusion.
    lamb: ridge of both.
    fusion: "closed_form", or "mean", eq. 6: the adapters' mean, added.
    pack: concepts that train on one device at a time.
    keep: is given the statistics for a re-solve.

  Raises:
    ValueError: a phrase, a file or an option is not usable; a system is not
      positive definite.
    FloatingPointError: an adapter's loss is not finite.
  """
  return _erase(sd, params, concepts, key, options.collect(locals()))


def _erase(
  sd: Any,
  params: Any,
  concepts: Sequence[Concept],
  key: Array,
  given: options.Options,
) -> Edit:
  focus = given.training.focus
  if focus:
    suppress.focal_law(sd.schedule.num_train_timesteps, *focus)
  check_concepts(concepts)
  given.training.check(concepts)
  text.check_phrases(sd.tokenizer, concepts)
  for concept in concepts:
    given.images.check(concept)
    # Read once more when its turn comes: a hundred concepts' fill memory.
    image.given(sd, concept, given.images)
  said = stages.speak(sd, params, concepts, key, given)
  begun = stages.start(sd, params, concepts, said, given)
  whole, report = stages.train(sd, params, concepts, key, said, begun, given)
  erased, found = whole.solve(params, given.fusion)
  if given.keep is not None:
    given.keep(whole)
  return edit_between(
    params,
    erased,
    method=f"mace {given.preset}",
    concepts=concepts,
    diagnostics={**found, "concepts": report},
  )


def foreign_part(
  sd: Any,
  params: Any,
  name: str,
  adapters: Adapters,
  prompts: Sequence[str],
) -> Part:
  """Adapters from elsewhere, to be fused so that they act on `prompts`.

    base = base_fingerprint(params)
    part = foreign_part(sd, params, name, lora.load(file, params), prompts)
    Fusion(base, (part, ...), preserved, 0, fuse_scale, lamb).solve(params)

  Args:
    sd: the model.
    params: its parameters, which the adapters belong to.
    name: what to call them.
    adapters: of key and value projections of the text; any rank, an alpha
      multiplied in.
    prompts: where they shall act.
  """
  if not prompts:
    raise ValueError(f"{name!r}: no prompts to act on")
  gram = preserved_gram(sd, params, list(prompts))
  part = Part(name, closed_form.Sums.zero(len(gram)), gram, adapters)
  check_adapters(part, cross_attention_kernels(params))
  return part
