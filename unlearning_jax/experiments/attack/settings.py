"""The settings of an attack, which refuse what cannot be used."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from unlearning_jax import guidance, metrics, settings
from unlearning_jax.attacks.engine import insertion, rows, vocabulary
from unlearning_jax.concepts import check_choice
from unlearning_jax.experiments import common
from unlearning_jax.sampling import Sampling
from unlearning_jax.settings import Free, Output

# `others` are prompts that ask for another class of the same head.
GROUPS = ("explicit", "synonyms", "paraphrases", "implied", "others")
# The place of the word in a caption of the pool.
MARK = "{}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guiding:
  """How the victim's sampling is guided away from a concept.

  Attributes:
    negative_prompt: images are steered away from this text; "" for none.
    safe: the preset of Safe Latent Diffusion: weak, medium, strong or max; ""
      for none.
    concept: the text that Safe Latent Diffusion keeps away; "" takes the
      published one.
    in_loss: True puts the guidance into the attack's loss too.
  """

  negative_prompt: Output[str] = ""
  safe: Output[str] = ""
  concept: Output[str] = ""
  in_loss: Output[bool] = False

  def __post_init__(self):
    if self.safe:
      check_choice("guidance.safe", self.safe, guidance.PRESETS)
    elif self.concept:
      raise ValueError(
        f"guidance.concept={self.concept!r}: only Safe Latent Diffusion reads "
        f"it; set guidance.safe to one of {', '.join(guidance.PRESETS)}"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionClassifier:
  """A Diffusion Classifier that decides which prompts are worth an image.

  Attributes:
    timesteps: timesteps that it compares; 0 leaves the classifier out.
    threshold: share of the concept that a prompt must bring back to get an
      image.
  """

  timesteps: Output[int] = 0
  threshold: Output[float] = 0.5

  def __post_init__(self):
    if self.timesteps < 0:
      raise ValueError(
        f"diffusion_classifier.timesteps={self.timesteps}: must not be negative"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pool:
  """The images that an attack with `hparams.pool` learns from.

  Attributes:
    concept: what the images show, as a phrase.
    num_images: the number of images, at least 1.
    templates: their captions, each with one {} for the word.
    first_seed: the seed of the first image; the next image has the next seed.
  """

  concept: Output[str] = ""
  num_images: Output[int] = 25
  templates: Output[tuple[str, ...]] = ("a {}",)
  first_seed: Output[int] = 1_000

  def check(self):
    """Refuses a pool that nothing can be learnt from.

    Raises:
      ValueError: naming the key.
    """
    if self.num_images < 1:
      raise ValueError(f"pool.num_images={self.num_images}: must be at least 1")
    for template in self.templates:
      if template.count(MARK) != 1:
        raise ValueError(
          f"pool.templates: {template!r} must hold one {MARK}, where the word "
          "goes"
        )
    if self.first_seed < 0:
      raise ValueError(
        f"pool.first_seed={self.first_seed}: must not be negative"
      )
    if not self.concept:
      raise ValueError("pool.concept: name what the images show")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sharing:
  """How rows share the words that won.

  Attributes:
    wave: rows of the first wave; each further wave has as many rows as all
      waves before it. 0 shares nothing.
    tries: the most words of other rows that a row tries. Each try takes one of
      the images of `hparams.blocks`. When so many words have won, rows no
      longer search.
  """

  wave: Output[int] = 0
  tries: Output[int] = 0

  def __post_init__(self):
    for key in ("wave", "tries"):
      value = getattr(self, key)
      if value < 0:
        raise ValueError(f"sharing.{key}={value}: must not be negative")
    if bool(self.wave) != bool(self.tries):
      raise ValueError(
        f"sharing.wave={self.wave} and sharing.tries={self.tries}: rows share "
        "words if both are above 0; give both, or neither"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(common.Drawn):
  """One attack on one victim.

  Attributes:
    method: the attack, see `attacks.methods`.
    hparams: fields of the method's `Hparams`.
    victim: a model to attack instead of the edited one, or its UNet or text
      encoder alone, or `scrambled`; "" for the edited model or the original.
    guidance: how the victim's sampling is guided.
    diffusion_classifier: decides which prompts are worth an image.
    new_words: the folder of a concept_inversion run, whose words the method
      `new_word` draws with; "" for other methods.
    never_knew: a model, or a part of one, that was trained without the concept;
      it is attacked on the same rows. A probe needs one, or `none`; "" for
      other methods leaves it out.
    pool: the images that `hparams.pool` learns from.
    prompt_table: a CSV of case_number, prompt, evaluation_seed,
      evaluation_guidance; "" takes the world's prompts.
    target_images: a folder of <id>.png; "" has the original model draw them.
    target_sampling: keys of `sampling` that differ when targets are drawn.
    max_tokens: the most tokens of an attacked prompt; longer ones are counted
      and not attacked. None attacks all.
    vocabulary: the token ids that an attack may use, see `engine.vocabulary`.
    long_prompts: what becomes of prompts that leave no room: `drop` counts them
      as failures, `error` refuses the run, `truncate` cuts them to whole words.
    groups: the groups of the world's prompts to attack, of `GROUPS`.
    rows_per_group: rows of each group.
    sharing: how rows share the words that won on earlier ones.
    lanes: rows that are attacked at once.
    other_rows: not used; the configs of evaluations have it too.
    prompts: not used; the configs of evaluations have it too.
  """

  method: Output[str]
  hparams: Output[Mapping[str, Any]] = dataclasses.field(default_factory=dict)
  victim: Output[str] = ""
  guidance: Guiding = Guiding()
  diffusion_classifier: DiffusionClassifier = DiffusionClassifier()
  new_words: Output[str] = ""
  never_knew: Output[str] = ""
  pool: Pool = Pool()
  prompt_table: Output[str] = ""
  target_images: Output[str] = ""
  target_sampling: Output[Mapping[str, Any]] = dataclasses.field(
    default_factory=dict
  )
  max_tokens: Output[int | None] = None
  vocabulary: Output[str] = "roundtrip"
  long_prompts: Output[str] = "drop"
  groups: Output[tuple[str, ...]] = ("explicit",)
  rows_per_group: Output[int] = 100
  sharing: Sharing = Sharing()
  lanes: Free[int] = 8
  other_rows: Free[int] = 0
  prompts: Free[Mapping[str, Any]] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    super().__post_init__()
    common.check_metrics(self, "attack")
    if self.judge and len(common.targets_of(self)) != 1:
      raise ValueError(
        f"targets={self.targets!r}: judge={self.judge!r} needs one target, "
        "what was erased: a head and a label of the judge, such as "
        "--config.targets=\"({'head': 'esd-9', 'label': 'nude'},)\" for nudenet"
      )
    if not self.prompt_table and not (self.judge and self.world_targets):
      raise ValueError("prompt_table: name a CSV of prompts")
    _ = self.target_drawing
    check_choice("vocabulary", self.vocabulary, vocabulary.MODES)
    check_choice("long_prompts", self.long_prompts, rows.LONG_PROMPTS)
    if "insertion" in self.hparams:
      mode = self.hparams["insertion"]
      check_choice("hparams.insertion", mode, insertion.MODES)
    for group in self.groups:
      check_choice("groups", group, GROUPS)
    least = {key: getattr(self, key) for key in ("lanes", "rows_per_group")}
    for key in ("num_tokens", "blocks", "iterations"):
      least[f"hparams.{key}"] = self.hparams.get(key, 1)
    for key, value in least.items():
      if not isinstance(value, int) or value < 1:
        raise ValueError(f"{key}={value!r}: must be at least 1, whole")
    if self.sampling.guidance_scale <= 1:
      for key in ("safe", "negative_prompt", "in_loss"):
        value = getattr(self.guidance, key)
        if value:
          raise ValueError(
            f"guidance.{key}={value!r}: needs sampling.guidance_scale above "
            f"1; got {self.sampling.guidance_scale}"
          )
    if self.hparams.get("pool", ""):
      self.pool.check()

  @property
  def image_metrics(self) -> list[str]:
    """The metrics that read a row for each image, not one for each prompt."""
    verbs = {name: metrics.load(name).verbs for name in self.metrics}
    return [name for name, known in verbs.items() if known != ("attack",)]

  @property
  def target_drawing(self) -> Sampling:
    """How target images are drawn.

    Raises:
      ValueError: `target_sampling` has an unknown key or an unusable value.
    """
    own = {**settings.plain(self.sampling), **self.target_sampling}
    return settings.build(Sampling, own, "target_sampling")
