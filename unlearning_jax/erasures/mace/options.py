"""MACE's settings; what is not usable is refused when they are made."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from unlearning_jax import closed_form
from unlearning_jax.concepts import Concept, check_choice, same_phrase
from unlearning_jax.erasures.mace import masks, suppress, text
from unlearning_jax.erasures.mace.fusion import FUSIONS


@dataclasses.dataclass(frozen=True)
class Preset:
  """Where the release departs from the paper, or from what it means to do."""

  loss_form: str  # the paper squares the norm
  target_tokens: str  # the release's "pooler" token takes all padding along
  pixels: str  # the release feeds the autoencoder ImageNet-normalised images
  twice: bool  # the release multiplies stage (i)'s prior by its scale twice
  by_ends: bool  # words that concept and anchor share become context
  resize: str  # of masks
  count_captions: bool  # the release: every token of them weighs 1


PRESETS = {
  "fixed": Preset("squared", "phrase+eos", "vae", False, False, "area", False),
  "reference": Preset(
    "norm", "phrase+eos+pads", "reference", True, True, "nearest", True
  ),
}


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How an adapter of one kind of concept is trained, as published."""

  learning_rate: float
  num_steps: int = 50
  focal: bool = True


# One by phrase, or pairs for phrases that no config's dictionary can have.
Recipes = Mapping[str, str] | Sequence[tuple[str, str]]
RECIPES = {
  "object": Recipe(1e-5),
  "identity": Recipe(1e-4),
  "art": Recipe(1e-4),
  "unsafe": Recipe(1e-5, num_steps=120, focal=False),
}


def read_captions(file: str) -> list[str]:
  """The lines of a file of captions.

  Raises:
    ValueError: there is no such file.
  """
  path = pathlib.Path(file)
  if not path.is_file():
    raise ValueError(f"captions={file!r}: no such file; one text a line")
  return [line for line in path.read_text().splitlines() if line.strip()]


@dataclasses.dataclass(frozen=True, eq=False)
class Hparams:
  """MACE's hyperparameters.

  Attributes:
    preset: "fixed", or "reference" for the release's quirks.
    recipe: of `RECIPES` for all concepts, or one by phrase. Where none is told
      it is the task's: for people, who are objects, say "identity".
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
    num_inference_steps: of drawing one.
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
  """

  preset: str = "fixed"
  recipe: str | Recipes | None = None
  rank: int = 1
  learning_rate: float | None = None
  num_steps: int | None = None
  batch_size: int = 1
  focus: Sequence[float] = (200, 400, 0.05)
  loss_form: str | None = None
  target_tokens: str | None = None
  mask_source: str = "attention"
  data: str | None = None
  examples: Mapping[str, tuple[np.ndarray, np.ndarray | None]] | None = None
  num_images: int = 8
  num_inference_steps: int = 30
  guidance_scale: float = 7.5
  templates: Mapping[str, Sequence[str]] | None = None
  num_prompts: int = 30
  captions: str | Sequence[str] | None = None
  cache: str | None = None
  domain_weight: float = 1.0
  preserve_scale: float = 1.0
  fuse_scale: float = 1.0
  lamb: float = 10.0
  fusion: str = "closed_form"
  pack: int = 1

  def __post_init__(self):
    check_choice("preset", self.preset, PRESETS)
    check_choice("fusion", self.fusion, FUSIONS)
    check_choice("loss_form", self.variant.loss_form, suppress.LOSS_FORMS)
    check_choice("target_tokens", self.variant.target_tokens, text.TARGETS)
    check_choice("mask_source", self.mask_source, masks.SOURCES)
    if self.captions and isinstance(self.captions, str):
      read_captions(self.captions)
    scales = ("domain_weight", "preserve_scale", "fuse_scale", "lamb")
    closed_form.check_scales(
      learning_rate=self.learning_rate or 0.0,
      **{name: getattr(self, name) for name in scales},
    )
    for name in (
      "num_steps",
      "batch_size",
      "pack",
      "num_images",
      "num_inference_steps",
    ):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ValueError(f"{name}={value}; allowed: whole numbers from 1")
    for phrase, name in self._by_phrase.items():
      check_choice(f"recipe of {phrase!r}", name, RECIPES)
    if not self._by_phrase:
      check_choice("recipe", str(self.recipe or "object"), RECIPES)
    if self.data is not None and self.examples is not None:
      raise ValueError("data and examples: give one of them")
    if self.mask_source == "png" and self.data is None:
      raise ValueError("mask_source='png': give data, the folder")

  @property
  def variant(self) -> Preset:
    """The preset, with what replaces some of it."""
    instead = {"loss_form": self.loss_form, "target_tokens": self.target_tokens}
    given = {key: value for key, value in instead.items() if value is not None}
    return dataclasses.replace(PRESETS[self.preset], **given)

  @property
  def _by_phrase(self) -> dict[str, str]:
    """Recipes that are told concept by concept."""
    if self.recipe is None or isinstance(self.recipe, str):
      return {}
    # A config's dictionary is no Mapping to Python.
    return {same_phrase(k): v for k, v in dict(self.recipe).items()}

  def recipe_of(self, concept: Concept) -> Recipe:
    """What is trained for this concept, and how."""
    told = self.recipe if isinstance(self.recipe, str) else None
    told = told or self._by_phrase.get(same_phrase(concept.erase))
    recipe = RECIPES[told or concept.task]
    rate, steps = self.learning_rate, self.num_steps
    return Recipe(
      recipe.learning_rate if rate is None else rate,
      recipe.num_steps if steps is None else steps,
      recipe.focal and bool(self.focus),
    )

  def source_of(self, concept: Concept) -> str:
    """Of the concept's masks; a style is everywhere."""
    return "full" if concept.task == "art" else self.mask_source

  def check(self, concepts: Sequence[Concept]) -> None:
    """Refuses what does not fit these concepts.

    Raises:
      ValueError: a recipe of a phrase that is no concept, naming the nearest;
        a concept whose images or masks are not there, or not wanted.
    """
    names = [same_phrase(concept.erase) for concept in concepts]
    for phrase in self._by_phrase:
      check_choice("recipe of concept", phrase, names)
    for concept in concepts:
      self._check_examples(concept)

  def _check_examples(self, concept: Concept) -> None:
    name, source = concept.erase, self.source_of(concept)
    _, found = (self.examples or {}).get(name, (None, None))
    if self.examples is not None and name not in self.examples:
      raise ValueError(f"examples: none of {name!r}")
    if found is not None and concept.task == "art":
      raise ValueError(f"examples: {name!r} is a style, it has masks")
    if found is not None and source != "analytic":
      raise ValueError(
        f"examples hold masks of {name!r}, which mask_source={source!r} does "
        "not look at; give mask_source='analytic', or None in their place"
      )
    if found is None and source == "analytic":
      raise ValueError(
        f"mask_source='analytic': examples hold no masks of {name!r}"
      )
