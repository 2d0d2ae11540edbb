"""Erasing a list, one phrase or ten thousand, in one edit of UCE's."""

import dataclasses
from collections.abc import Sequence

import jax
from absl import logging

from unlearning_jax import lists, model, sharding
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """What is erased and held, and where the edit is kept.

  Attributes:
    model: the base.
    erase: a list, by its name or file.
    output: the edit's file.
    anchor: of all; None for the task's.
    preserve: a list, if any.
    captions: a list that is held in addition, if any.
    caption_scale: weight of all captions, in that of all erased rows.
    preserve_scale: p; None for the release's.
    erase_scale: e.
    lamb: the ridge.
    task: of all.
    preset: which rows, see `uce.PRESETS`.
    cache: a folder of preserve sums, if any.
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
    """What is erased, and what is held."""
    held = lists.load(self.preserve) if self.preserve else ()
    return make_concepts(lists.load(self.erase), self.anchor, held, self.task)


def run(settings: Settings) -> Edit:
  """Erases the list, and keeps the edit.

  Raises:
    ValueError: a list that is not there; an output that is; what `mass.erase`
      refuses.
  """
  concepts, captions = settings.concepts(), ()
  if settings.captions:
    captions = lists.load(settings.captions, repeats=True)
  tail = uce.PRESETS[settings.preset].tail
  scale = settings.preserve_scale
  if scale is None:
    # The release counts the empty prompt, which it always preserves.
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
  return edit
