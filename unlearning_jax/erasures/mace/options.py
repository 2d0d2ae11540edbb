"""MACE's settings, by stage; what is not usable is refused when one is made.

Their names and what they mean stand in `mace.erase`.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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


def choose_preset(name: str, **instead: str | None) -> Preset:
  """A preset, with what replaces some of it.

  Raises:
    ValueError: an unknown preset, form of the loss or choice of tokens.
  """
  check_choice("preset", name, PRESETS)
  given = {key: value for key, value in instead.items() if value is not None}
  variant = dataclasses.replace(PRESETS[name], **given)
  check_choice("loss_form", variant.loss_form, suppress.LOSS_FORMS)
  check_choice("target_tokens", variant.target_tokens, text.TARGETS)
  return variant


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


def read_captions(file: str) -> list[str]:
  """The lines of a file of captions.

  Raises:
    ValueError: there is no such file.
  """
  path = pathlib.Path(file)
  if not path.is_file():
    raise ValueError(f"captions={file!r}: no such file; one text a line")
  return [line for line in path.read_text().splitlines() if line.strip()]


@dataclasses.dataclass(frozen=True)
class Prior:
  """What the closed forms preserve, and how much."""

  captions: str | Sequence[str] | None
  cache: str | None
  domain_weight: float
  preserve_scale: float
  fuse_scale: float
  lamb: float

  def __post_init__(self):
    if self.captions and isinstance(self.captions, str):
      read_captions(self.captions)
    numbers = dataclasses.asdict(self)
    closed_form.check_scales(
      **{k: v for k, v in numbers.items() if k not in ("captions", "cache")}
    )


@dataclasses.dataclass(frozen=True)
class Training:
  """How the adapters are trained."""

  recipe: str | Mapping[str, str] | None
  rank: int
  learning_rate: float | None
  num_steps: int | None
  batch_size: int
  focus: Sequence[float]
  pack: int

  def __post_init__(self):
    if self._by_phrase:
      for phrase, name in self._by_phrase.items():
        check_choice(f"recipe of {phrase!r}", name, RECIPES)
    else:
      check_choice("recipe", str(self.recipe or "object"), RECIPES)
    closed_form.check_scales(learning_rate=self.learning_rate or 0.0)
    _check_counts(self, "num_steps", "batch_size", "pack")

  @property
  def _by_phrase(self) -> dict[str, str]:
    """Recipes that are told concept by concept."""
    if self.recipe is None or isinstance(self.recipe, str):
      return {}
    # A config's dictionary is no Mapping to Python.
    return {same_phrase(k): v for k, v in dict(self.recipe).items()}

  def check(self, concepts: Sequence[Concept]) -> None:
    """Refuses a recipe of a phrase that is no concept.

    Raises:
      ValueError: naming it, and the nearest.
    """
    names = [same_phrase(concept.erase) for concept in concepts]
    for phrase in self._by_phrase:
      check_choice("recipe of concept", phrase, names)

  def of(self, concept: Concept) -> Recipe:
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


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
  """Where training images and masks come from."""

  mask_source: str
  data: str | None
  examples: Mapping[str, tuple[Any, Any]] | None
  num_images: int
  image_steps: int
  guidance_scale: float

  def __post_init__(self):
    check_choice("mask_source", self.mask_source, masks.SOURCES)
    _check_counts(self, "num_images", "image_steps")
    if self.data is not None and self.examples is not None:
      raise ValueError("data and examples: give one of them")
    if self.mask_source == "png" and self.data is None:
      raise ValueError("mask_source='png': give data, the folder")

  def check(self, concept: Concept) -> None:
    """Refuses a concept whose images or masks are not there, or not wanted.

    Raises:
      ValueError: naming it.
    """
    name = concept.erase
    _, found = (self.examples or {}).get(name, (None, None))
    if self.examples is not None and name not in self.examples:
      raise ValueError(f"examples: none of {name!r}")
    if found is not None and concept.task == "art":
      raise ValueError(f"examples: {name!r} is a style, it has masks")
    source = self.source_of(concept)
    if found is not None and source != "analytic":
      raise ValueError(
        f"examples hold masks of {name!r}, which mask_source={source!r} does "
        "not look at; give mask_source='analytic', or None in their place"
      )
    if found is None and source == "analytic":
      raise ValueError(
        f"mask_source='analytic': examples hold no masks of {name!r}"
      )

  def source_of(self, concept: Concept) -> str:
    """Of the concept's masks; a style is everywhere."""
    return "full" if concept.task == "art" else self.mask_source


@dataclasses.dataclass(frozen=True, eq=False)
class Options:
  """All of them."""

  preset: str
  variant: Preset
  templates: Mapping[str, Sequence[str]]
  num_prompts: int
  prior: Prior
  training: Training
  images: Images
  fusion: str
  keep: Callable[[Any], None] | None


def collect(arguments: Mapping[str, Any]) -> Options:
  """The arguments of `mace.erase`, each with its stage.

  Raises:
    ValueError: one that is not usable.
  """

  def made(kind: Any) -> Any:
    names = [field.name for field in dataclasses.fields(kind)]
    return kind(**{name: arguments[name] for name in names})

  check_choice("fusion", arguments["fusion"], FUSIONS)
  return Options(
    arguments["preset"],
    choose_preset(
      arguments["preset"],
      loss_form=arguments["loss_form"],
      target_tokens=arguments["target_tokens"],
    ),
    arguments["templates"] or text.TEMPLATES,
    arguments["num_prompts"],
    made(Prior),
    made(Training),
    made(Images),
    arguments["fusion"],
    arguments["keep"],
  )


def _check_counts(options: Any, *names: str) -> None:
  for name in names:
    value = getattr(options, name)
    if value is not None and value < 1:
      raise ValueError(f"{name}={value}; allowed: whole numbers from 1")
