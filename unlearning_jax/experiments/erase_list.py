"""Erases a list of one to ten thousand phrases in one UCE edit."""

import dataclasses
import pathlib
from collections.abc import Sequence

import jax
from absl import logging

from unlearning_jax import checking, lists, model, sharding
from unlearning_jax.closed_form import mass, statistics
from unlearning_jax.concepts import (
  DEFAULT_ANCHORS,
  Concept,
  check_choice,
  make_concepts,
)
from unlearning_jax.convert import output
from unlearning_jax.edits import Edit, save_edit
from unlearning_jax.erasures import uce
from unlearning_jax.experiments import erase


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """What is erased and preserved, and where the edit is kept.

  Attributes:
    model: the base: a world's name, a folder or a hub id.
    erase: the list to erase, a published list's name or a file.
    output: the edit's file.
    anchor: the anchor of every phrase; None takes the task's.
    preserve: the list to preserve; None preserves nothing.
    captions: a list of captions to preserve as well; None for none.
    caption_scale: the weight of all captions over that of all erased rows.
    preserve_scale: p, at least 0; None takes the published release's.
    erase_scale: e, the weight of the erased rows, at least 0.
    lamb: the weight of the distance to the base weights, at least 0.
    task: object, art or unsafe; it decides anchors and templates.
    preset: a key of `uce.PRESETS`; it decides which token rows are used.
    cache: a folder that keeps sums over preserved lists; None keeps none.
  """

  model: str
  erase: str
  output: str
  anchor: str | None = None
  preserve: str | None = None
  captions: str | None = None
  caption_scale: float = 1.0
  preserve_scale: float | None = None
  erase_scale: float = 1.0
  lamb: float = 0.5
  task: str = "object"
  preset: str = "uce2023"
  cache: str | None = None

  def __post_init__(self):
    check_choice("--task", self.task, DEFAULT_ANCHORS)
    check_choice("--preset", self.preset, uce.PRESETS)

  def concepts(self) -> Sequence[Concept]:
    """The concepts to erase, each with what it preserves."""
    held = lists.load(self.preserve) if self.preserve else ()
    return make_concepts(lists.load(self.erase), self.anchor, held, self.task)


def run(settings: Settings) -> Edit:
  """Erases the list, and keeps the edit.

  Raises:
    ValueError: a list is missing, the output exists, or `mass.erase` refuses.
  """
  concepts, captions = settings.concepts(), ()
  if settings.captions:
    captions = lists.load(settings.captions, repeats=True)
  tail = uce.PRESETS[settings.preset].tail
  scale = settings.preserve_scale
  if scale is None:
    # The release also counts the empty prompt, which it always preserves.
    scale = max(0.1, 1 / (1 + len(concepts[0].preserve))) if tail else 1.0
  weights = mass.Weights(
    tail=tail,
    erase_scale=settings.erase_scale,
    preserve_scale=scale,
    lamb=settings.lamb,
    caption_scale=settings.caption_scale,
  )
  path = output.check_output(settings.output, overwrite=False)
  statistics.check_unedited(settings.model)
  base = model.load(settings.model)
  checking.passed()
  edit = mass.erase(
    base.sd,
    base.params,
    sharding.make_mesh(),
    concepts,
    weights,
    captions,
    settings.cache,
    lambda done: logging.info("%d phrases", done),
  )
  if jax.process_index() == 0:
    save_edit(edit, path)
    erase.probed(pathlib.Path(path), base, edit, concepts)
  return edit
