"""MACE's hyperparameters, which are checked when they are made."""

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
  """Where the release differs from the paper, or from its own intent."""

  loss_form: str  # the paper squares the norm, the release does not
  target_tokens: str  # the release's "pooler" token includes all padding
  pixels: str  # the release normalizes the autoencoder's input as ImageNet's
  twice: bool  # the release multiplies stage (i)'s C by its scale twice
  by_ends: bool  # in the release, words shared with the anchor are context
  resize: str  # how masks reach a layer's size
  count_captions: bool  # in the release, each token of a caption has weight 1


PRESETS = {
  "fixed": Preset("squared", "phrase+eos", "vae", False, False, "area", False),
  "reference": Preset(
    "norm", "phrase+eos+pads", "reference", True, True, "nearest", True
  ),
}


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How the release trains adapters for one kind of concept."""

  learning_rate: float
  num_steps: int = 50
  focal: bool = True


# {phrase: recipe}, or pairs for phrases that a config's keys cannot hold.
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
    raise ValueError(
      f"captions={file!r}: no such file; give a file with one text a line"
    )
  return [line for line in path.read_text().splitlines() if line.strip()]


@dataclasses.dataclass(frozen=True, eq=False)
class Hparams:
  """MACE's hyperparameters.

  Attributes:
    preset: "fixed", or "reference" for the release's deviations, see `Preset`.
    recipe: a name in `RECIPES` for all concepts, or {phrase: name}. By default
      it follows the task. Give "identity" for people, whose task is "object".
    rank: the adapters' rank.
    learning_rate: replaces the recipe's.
    num_steps: replaces the recipe's.
    batch_size: images in a step, whose losses are averaged.
    focus: t1, t2 and gamma of the focal sampling; empty samples uniformly.
    loss_form: "squared" or "norm"; replaces the preset's.
    target_tokens: S, a name in `text.TARGETS`; replaces the preset's.
    mask_source: a name in `masks.SOURCES`; styles always have "full".
    data: a folder of images, see `images.read`.
    examples: {phrase: (images, masks)} instead of `data`: uint8 (m, H, W, 3),
      and (m, H, W) or None.
    num_images: how many images to draw for a concept without any.
    num_inference_steps: sampling steps of a drawn image.
    guidance_scale: guidance scale of the drawn images.
    templates: {task: sentences with "{}"}; the first draws the images. None for
      our own.
    num_prompts: how many of its task's templates each concept has.
    captions: further texts to preserve, or a file with one a line. Together
      they weigh as much as the concepts' own rows; in "reference" each token
      has weight 1.
    cache: a folder that keeps the captions' sums.
    domain_weight: the weight of each token that the concepts preserve.
    preserve_scale: s of the refinement.
    fuse_scale: s of the fusion.
    lamb: ridge of both.
    fusion: "closed_form" (eq. 7), or "mean" for the adapters' mean (eq. 6).
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
      raise ValueError("mask_source='png': give data, the folder with masks")

  @property
  def variant(self) -> Preset:
    """The preset, with `loss_form` and `target_tokens` replaced if given."""
    instead = {"loss_form": self.loss_form, "target_tokens": self.target_tokens}
    given = {key: value for key, value in instead.items() if value is not None}
    return dataclasses.replace(PRESETS[self.preset], **given)

  @property
  def _by_phrase(self) -> dict[str, str]:
    """Recipes of single concepts."""
    if self.recipe is None or isinstance(self.recipe, str):
      return {}
    # `dict` also takes a ConfigDict, which is no Mapping.
    return {same_phrase(k): v for k, v in dict(self.recipe).items()}

  def recipe_of(self, concept: Concept) -> Recipe:
    """How this concept's adapter trains."""
    name = self.recipe if isinstance(self.recipe, str) else None
    name = name or self._by_phrase.get(same_phrase(concept.erase))
    recipe = RECIPES[name or concept.task]
    rate, steps = self.learning_rate, self.num_steps
    return Recipe(
      recipe.learning_rate if rate is None else rate,
      recipe.num_steps if steps is None else steps,
      recipe.focal and bool(self.focus),
    )

  def source_of(self, concept: Concept) -> str:
    """Where the concept's masks come from; a style covers the whole image."""
    return "full" if concept.task == "art" else self.mask_source

  def check(self, concepts: Sequence[Concept]) -> None:
    """Checks that recipes and examples belong to these concepts.

    Raises:
      ValueError: a recipe for a phrase that is no concept (the message names
        the nearest), or images or masks that are missing or never used.
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
      raise ValueError(
        f"examples: none of {name!r}; give (images, masks) for every concept"
      )
    if found is not None and concept.task == "art":
      raise ValueError(
        f"examples: {name!r} is a style, which has no masks; give None"
      )
    if found is not None and source != "analytic":
      raise ValueError(
        f"examples hold masks of {name!r}, which mask_source={source!r} does "
        "not use; give mask_source='analytic', or None in their place"
      )
    if found is None and source == "analytic":
      raise ValueError(
        f"mask_source='analytic': examples hold no masks of {name!r}"
      )
