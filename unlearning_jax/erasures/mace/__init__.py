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

import dataclasses
import pathlib
import types
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float64

from unlearning_jax import closed_form
from unlearning_jax.closed_form import Edit
from unlearning_jax.concepts import (
  Concept,
  check_choice,
  check_concepts,
  preserved_phrases,
  same_phrase,
)
from unlearning_jax.erasures import uce
from unlearning_jax.erasures.mace import images as image
from unlearning_jax.erasures.mace import masks as mask
from unlearning_jax.erasures.mace import suppress as suppress
from unlearning_jax.erasures.mace import text as text
from unlearning_jax.erasures.mace.fusion import (
  Fusion,
  Part,
  check_adapters,
  with_kernels,
)
from unlearning_jax.erasures.mace.fusion import load_fusion as load_fusion
from unlearning_jax.erasures.mace.fusion import save_fusion as save_fusion
from unlearning_jax.lora import Adapters


@dataclasses.dataclass(frozen=True)
class Preset:
  """Where the release departs from the paper, or from what it means to do."""

  loss_form: str  # the paper squares the norm
  target_tokens: str  # the release's "pooler" token takes all padding along
  pixels: str  # the release feeds the autoencoder ImageNet-normalised images
  twice: bool  # the release multiplies stage (i)'s prior by its scale twice
  by_ends: bool  # words that concept and anchor share become context
  resize: str  # of masks


PRESETS = {
  "fixed": Preset("squared", "phrase+eos", "vae", False, False, "area"),
  "reference": Preset(
    "norm", "phrase+eos+pads", "reference", True, True, "nearest"
  ),
}


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How an adapter of one kind of concept is trained, as published."""

  learning_rate: float
  num_steps: int = 50
  focal: bool = True


RECIPES = {
  "object": Recipe(1e-5),
  "identity": Recipe(1e-4),
  "art": Recipe(1e-4),
  "unsafe": Recipe(1e-5, num_steps=120, focal=False),
}


def erase(
  sd: Any,
  params: Any,
  concepts: Sequence[Concept],
  key: Array,
  *,
  preset: str = "fixed",
  recipe: str | None = None,
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
  domain_weight: float = 1.0,
  preserve_scale: float = 1.0,
  fuse_scale: float = 1.0,
  lamb: float = 10.0,
  pack: int = 1,
  keep: Callable[[Fusion], None] | None = None,
) -> Edit:
  """Erases `concepts` by MACE; diagnostics say where each one's masks are from.

  Args:
    sd: the model.
    params: its parameters.
    concepts: of any tasks; what they preserve is the release's "domain".
    key: of images, adapters and noise; each concept draws from its own.
    preset: "fixed", or "reference" for the release's quirks, see `Preset`.
    recipe: of `RECIPES` for all concepts; None for each one's task's.
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
    domain_weight: of what the concepts preserve, against captions.
    preserve_scale: s of the refinement.
    fuse_scale: s of the fusion.
    lamb: ridge of both.
    pack: concepts that train on one device at a time.
    keep: is given the statistics for a re-solve.

  Raises:
    ValueError: a phrase, a file or an option is not usable; a system is not
      positive definite.
    FloatingPointError: an adapter's loss is not finite.
  """
  return _erase(types.SimpleNamespace(**locals()))


def _erase(given: Any) -> Edit:
  """`erase`, of its arguments under their own names."""
  fusion, report = _train(given, _checked(given))
  erased, found = fusion.solve(given.params)
  if given.keep is not None:
    given.keep(fusion)
  return closed_form.edit_between(
    given.params,
    erased,
    method=f"mace {given.preset}",
    concepts=given.concepts,
    diagnostics={**found, "concepts": report},
  )


def _checked(given: Any) -> Preset:
  """The preset with what replaces it; ValueError for what cannot be meant."""
  check_choice("preset", given.preset, PRESETS)
  check_choice("recipe", given.recipe or "object", RECIPES)
  check_choice("mask_source", given.mask_source, mask.SOURCES)
  variant = PRESETS[given.preset]
  for name, allowed in (
    ("loss_form", suppress.LOSS_FORMS),
    ("target_tokens", text.TARGETS),
  ):
    value = getattr(given, name) or getattr(variant, name)
    check_choice(name, value, allowed)
    variant = dataclasses.replace(variant, **{name: value})
  closed_form.check_scales(
    learning_rate=given.learning_rate or 0.0,
    domain_weight=given.domain_weight,
    preserve_scale=given.preserve_scale,
    fuse_scale=given.fuse_scale,
    lamb=given.lamb,
  )
  for name in ("num_steps", "batch_size", "num_images", "image_steps", "pack"):
    value = getattr(given, name)
    if value is not None and value < 1:
      raise ValueError(f"{name}={value}; allowed: whole numbers from 1")
  if given.focus:
    suppress.focal_law(given.sd.schedule.num_train_timesteps, *given.focus)
  check_concepts(given.concepts)
  text.check_phrases(given.sd.tokenizer, given.concepts)
  if given.data is not None and given.examples is not None:
    raise ValueError("data and examples: give one of them")
  if given.mask_source == "png" and given.data is None:
    raise ValueError("mask_source='png': give data, the folder")
  for concept in given.concepts:
    _, masks = (given.examples or {}).get(concept.erase, (None, None))
    if given.examples is not None and concept.erase not in given.examples:
      raise ValueError(f"examples: none of {concept.erase!r}")
    if masks is not None and concept.task == "art":
      raise ValueError(f"examples: {concept.erase!r} is a style, it has masks")
    needed = given.mask_source == "analytic" and concept.task != "art"
    if needed and masks is None:
      raise ValueError(
        f"mask_source='analytic': examples hold no masks of {concept.erase!r}"
      )
  return variant


def concept_key(key: Array, concept: Concept) -> Array:
  """The concept's own key, whatever its company and its place."""
  name = same_phrase(concept.erase).encode()
  return jax.random.fold_in(key, zlib.crc32(name))


def preserved_gram(
  sd: Any,
  params: Any,
  captions: str | Sequence[str],
  preserve: Iterable[str] = (),
  domain_weight: float = 1.0,
) -> Float64[np.ndarray, "d d"]:
  """C = sum of e e^T over captions + domain_weight of that over `preserve`.

  All tokens of every text; one matrix serves all layers.

  Args:
    sd: the model.
    params: its parameters.
    captions: texts, or the name of a file with one a line.
    preserve: the domain's phrases.
    domain_weight: of these.
  """
  if isinstance(captions, str):
    path = pathlib.Path(captions)
    if not path.is_file():
      raise ValueError(f"captions={captions!r}: no such file; one text a line")
    captions = [line for line in path.read_text().splitlines() if line.strip()]
  total = closed_form.Sums.zero(closed_form.text_width(params))
  for texts, weight in ((captions, 1.0), (preserve, domain_weight)):
    for state in uce.encode(sd, params, list(texts)):
      total += weight * closed_form.preserve_sums(state.rows, 1.0)
  return total.gram


def foreign_part(
  sd: Any,
  params: Any,
  name: str,
  adapters: Adapters,
  prompts: Sequence[str],
) -> Part:
  """Adapters from elsewhere, to be fused so that they act on `prompts`.

    base = closed_form.base_fingerprint(params)
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
  check_adapters(part, closed_form.cross_attention_kernels(params))
  return part


def _train(given: Any, variant: Preset) -> tuple[Fusion, dict[str, Any]]:
  """Stages (i) and (ii): what the fusion needs, and a record by concept."""
  sd, params, concepts = given.sd, given.params, given.concepts
  scale = given.preserve_scale
  keys = [
    jax.random.split(concept_key(given.key, concept), 4) for concept in concepts
  ]
  words = [
    text.encode_concept(
      sd,
      params,
      concept,
      text.choose_templates(
        concept,
        given.templates or text.TEMPLATES,
        given.num_prompts,
        np.random.default_rng(np.asarray(jax.random.key_data(own[0]))),
      ),
      tokens=variant.target_tokens,
      by_ends=variant.by_ends,
    )
    for concept, own in zip(concepts, keys, strict=True)
  ]
  fusion = Fusion(
    closed_form.base_fingerprint(params),
    tuple(
      Part(concept.erase, w.sums, w.gram, {})
      for concept, w in zip(concepts, words, strict=True)
    ),
    preserved_gram(
      sd,
      params,
      given.captions or (),
      preserved_phrases(concepts),
      given.domain_weight,
    ),
    refine_scale=scale**2 if variant.twice else scale,
    fuse_scale=given.fuse_scale,
    lamb=given.lamb,
  )
  refined = with_kernels(params, fusion.refine(params)[0])
  runs, report = [], {}
  for concept, own, spoken in zip(concepts, keys, words, strict=True):
    run, record = _run(given, variant, concept, own[1:], spoken)
    runs.append(run)
    report[concept.erase] = record
  adapters, losses = suppress.train(
    sd, refined, runs, rank=given.rank, form=variant.loss_form, pack=given.pack
  )
  for run, loss in zip(runs, losses, strict=True):
    report[run.name] |= {"loss": [float(loss[0]), float(loss[-1])]}
  parts = [
    dataclasses.replace(part, adapters=trained)
    for part, trained in zip(fusion.parts, adapters, strict=True)
  ]
  return dataclasses.replace(fusion, parts=tuple(parts)), report


def _run(
  given: Any, variant: Preset, concept: Concept, keys: Any, words: text.Words
) -> tuple[suppress.Run, dict[str, Any]]:
  """One concept's images, masks and steps, and a record of them."""
  sd = given.sd
  recipe = RECIPES[given.recipe or concept.task]
  focus = given.focus if recipe.focal else ()
  images, masks, origin = image.examples(
    given, concept, given.templates or text.TEMPLATES, keys[0]
  )
  mean, std = image.encode_images(sd, given.params, images, variant.pixels)
  latents = image.encode_images(sd, given.params, images, "vae")[0]
  source = "full" if concept.task == "art" else given.mask_source
  masks, full = mask.choose(
    sd, given.params, concept.erase, source, masks, images.shape[:3],
    latents, words, keys[1],
  )  # fmt: skip
  total = sd.schedule.num_train_timesteps
  law = suppress.focal_law(total, *focus) if focus else np.ones(total) / total
  steps = given.num_steps or recipe.num_steps
  rate = given.learning_rate
  rate = recipe.learning_rate if rate is None else rate
  plan = suppress.make_plan(
    keys[2], len(images), len(words.states), steps, given.batch_size, law
  )
  layers = mask.for_layers(sd, list(masks), variant.resize)
  told = suppress.Examples(mean, std, layers, words.states, words.targets)
  return suppress.Run(concept.erase, keys[2], told, plan, rate), {
    "images": origin,
    "mask_source": source,
    "full_instead": full,
    "mask_area": float(masks.mean()),
    "learning_rate": rate,
    "num_steps": steps,
    "focus": list(focus),
  }
