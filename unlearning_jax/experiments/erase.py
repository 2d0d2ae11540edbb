"""Erases concepts once, reads the result back after a restart, and draws."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from unlearning_jax import (
  checking,
  concepts,
  erasures,
  guidance,
  lists,
  probe,
  stable_diffusion,
  tokens,
)
from unlearning_jax.closed_form import statistics
from unlearning_jax.concepts import Concept
from unlearning_jax.edits import Edit, save_edit
from unlearning_jax.erasures import NO_HOOKS, Erasure, Hooks
from unlearning_jax.experiments import common, drawing, evaluate, hooks
from unlearning_jax.guidance import Guidance
from unlearning_jax.model import Model, called
from unlearning_jax.probe.measure import measure
from unlearning_jax.record import Recorder, tracking
from unlearning_jax.report.comparison import BASE
from unlearning_jax.settings import Output


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(drawing.Settings):
  """An erasure, and what is drawn before and after it.

  Attributes:
    method: see `erasures.bind`.
    hparams: fields of its `Hparams`.
    concepts: what to erase, fields of `Concept` each.
    preserve: name of a list that is held too.
    edit_only: whether to make the edit alone, and draw nothing.
  """

  method: Output[str]
  hparams: Output[Mapping[str, Any]] = dataclasses.field(default_factory=dict)
  concepts: Output[tuple[Mapping[str, Any], ...]] = ()
  preserve: Output[str] = ""
  edit_only: Output[bool] = False

  def __post_init__(self):
    super().__post_init__()
    # Refuses now a text that cannot be encoded later.
    self.spoken()

  @property
  def draws(self) -> bool:
    """Whether images before and after are drawn."""
    return not self.edit_only

  @functools.cached_property
  def erasure(self) -> Erasure:
    """The method with its hyperparameters."""
    return erasures.bind(self.method, self.hparams)

  @functools.cached_property
  def phrases(self) -> tuple[Concept, ...]:
    """The concepts to erase, each with what it preserves."""
    conflict = getattr(self.erasure.h, "allow_conflict", False)
    return wanted(self.concepts, self.preserve, conflict)

  def spoken(self) -> list[str]:
    """All texts that must be short enough to encode."""
    h = self.erasure.h
    pairs = concepts.phrase_pairs(
      self.phrases,
      expand=getattr(h, "expand_prompts", False),
      template_anchors=False,
    )
    if getattr(h, "truncate", False):
      return []
    held = concepts.preserved_phrases(self.phrases)
    return [*(text for pair in pairs for text in pair), *held]


def what_next(folder: str) -> str:
  """A line that says where a model is, and which verbs take it."""
  return (
    f"made: {folder}; go on with unlearning-jax evaluate --edits={folder}, or "
    f"attack or finetune, both with --edit={folder}"
  )


def run(
  settings: Settings,
  open_record: Callable[[], Recorder],
  model: Model | None = None,
  every: int = 100,
  tensorboard: bool = False,
  strict: bool = False,
) -> tuple[Model, dict[str, Any]]:
  """The whole experiment: erases, draws before and after, writes the page.

  Args:
    settings: what to erase, and what to draw.
    open_record: called when all that can be wrong has been checked.
    model: the base; None reads what the settings name.
    every: steps between states to go on from.
    tensorboard: write events too.
    strict: see `made`.

  Returns:
    The erased model, and the document that the page renders.

  Raises:
    ValueError: a model that was edited before, or that cannot be read; what
      it cannot draw; what the method refuses; a record of another run.
    FloatingPointError: a training diverges.
  """
  if tensorboard:
    tracking.package("tensorboardX", "tensorboard")
  record, model = begin(settings, open_record, model)
  found = made(
    record.path / common.EDIT,
    model,
    settings.erasure,
    settings.phrases,
    settings.seed,
    hooks.recorded(record, every, tensorboard=tensorboard),
    record.is_writer,
    strict,
  )
  return finish(settings, record, model, found)


def begin(
  settings: Settings,
  open_record: Callable[[], Recorder],
  model: Model | None = None,
) -> tuple[Recorder, Model]:
  """Checks all that can be wrong, and begins the record; arguments as `run`.

  Returns:
    The record, and the base.

  Raises:
    ValueError: as `run`.
  """
  erasure, phrases = settings.erasure, settings.phrases
  # A folder that was exported with an edit is a base to all that read it.
  statistics.check_unedited((model and model.source) or settings.model)
  if model is None:
    model = common.load_model(settings)
  if model.edit is not None or model.guidance is not None:
    raise ValueError(
      f"model: {model.name} was erased from before; erase all concepts "
      "together, from `model.base`"
    )
  evaluate.check_fits(settings, model, settings.spoken())
  check_phrases(model, erasure, phrases)
  if not erasures.module(settings.method).CHANGES:
    # Guidance takes no time, so check now whether it can be drawn.
    key = jax.random.key(settings.seed)
    guided = model.with_made(erasure(model.sd, model.params, phrases, key))
    evaluate.check_fits(settings, guided)
    checking.about(safe=bool(guided.drawing["safe"]))
  record = open_record()
  common.begin(record, settings, model.params)
  return record, model


def finish(
  settings: Settings, record: Recorder, model: Model, found: Edit | Guidance
) -> tuple[Model, dict[str, Any]]:
  """Draws before and after, and writes the page; returns as `run`.

  Args:
    settings: what to draw.
    record: from `begin`.
    model: the base.
    found: what was made of it.
  """
  hooks.tidy(record)
  erased = model.with_made(found)
  known = probe.of(record.path / common.EDIT)
  document = evaluate.compare(
    record,
    settings,
    {BASE: model, called(found): erased},
    notes=[known.sentence] if known else [],
    facts={"probe": known.facts()} if known else {},
  )
  record.mark_done()
  return erased, document


def made(
  path: pathlib.Path,
  model: Model,
  erasure: Erasure,
  phrases: Sequence[Concept],
  seed: int,
  own: Hooks = NO_HOOKS,
  writes: bool = True,
  strict: bool = False,
) -> Edit | Guidance:
  """Makes the edit or guidance of an erasure, or reads back an earlier one.

  The probe runs before the edit is written; its figures are kept beside it.

  Args:
    path: the edit's file; guidance is kept beside it, as `guidance.json`.
    model: the base.
    erasure: from `erasures.bind`.
    phrases: the concepts to erase.
    seed: the seed that the method draws from.
    own: its hooks, see `erasures.Hooks`.
    writes: True in the one of several processes that keeps the result.
    strict: whether an erasure that seems to have failed is an error.

  Raises:
    ValueError: the erasure cannot be made; with `strict`, the probe says that
      it failed.
  """
  found = read(path)
  if found is None:
    key = jax.random.key(seed)
    found = erasure(model.sd, model.params, phrases, key, own)
    keep(path, model, found, phrases, writes=writes, strict=strict)
  elif known := probe.of(path):
    known.check(erasure.method, strict)
  return found


def read(path: pathlib.Path) -> Edit | Guidance | None:
  """What an earlier start made, see `made`; None where it made nothing."""
  for file in (path, path.with_name(common.GUIDANCE)):
    if file.exists():
      return common.read_made(file)
  return None


def keep(
  path: pathlib.Path,
  model: Model,
  found: Edit | Guidance,
  phrases: Sequence[Concept],
  *,
  writes: bool = True,
  strict: bool = False,
):
  """Probes an erasure and writes it; arguments as `made`.

  Raises:
    ValueError: `strict`, and it seems to have failed; nothing is written.
  """
  probed(path, model, found, phrases, writes=writes, strict=strict)
  if writes and isinstance(found, Guidance):
    guidance.save(found, path.with_name(common.GUIDANCE))
  elif writes and isinstance(found, Edit):
    save_edit(found, path)


def probed(
  path: pathlib.Path,
  model: Model,
  found: Edit | Guidance,
  phrases: Sequence[Concept],
  *,
  writes: bool = True,
  strict: bool = False,
):
  """Probes an erasure, and keeps what the probe says beside its file.

  Args:
    path: of the file, which need not be there yet.
    model: the base.
    found: what the erasure made.
    phrases: what it erased.
    writes: whether this process keeps it.
    strict: see `made`.

  Raises:
    ValueError: `strict`, and it seems to have failed.
  """
  known = measure(model, found, phrases)
  known.check(found.method, strict)
  if writes:
    known.save(path)


def check_phrases(model: Model, erasure: Erasure, phrases: Sequence[Concept]):
  """Refuses phrases that this model cannot tell apart, before any work.

  Raises:
    ValueError: one is too long; a concept has no tokens, or those of its
      anchor, of another concept or of a preserved phrase.
  """
  sd, cuts = model.sd, getattr(erasure.h, "truncate", False)
  ends = [end for one in phrases for end in (one.erase, one.anchor)]
  if not cuts:
    stable_diffusion.tokenize(sd, ends)
  tokens.check_tokens(
    sd.tokenizer,
    phrases,
    allow_conflict=getattr(erasure.h, "allow_conflict", False),
    length=sd.context_shape[0],
  )


def wanted(
  listed: Sequence[Mapping[str, Any]],
  held: str = "",
  allow_conflict: bool = False,
) -> tuple[Concept, ...]:
  """The concepts of a config, each of which preserves a list as well.

  Args:
    listed: fields of `Concept` each.
    held: the name of a list to preserve without what is erased; "" for none.
    allow_conflict: see `uce.Hparams`.

  Raises:
    ValueError: a key or the list is unknown, or a phrase is blank, repeated or
      contradictory.
  """
  known = [field.name for field in dataclasses.fields(Concept)]
  for concept in listed:
    for key in concept:
      concepts.check_choice("concepts key", key, known)
  found = tuple(Concept(**concept) for concept in listed)
  if held:
    kept = concepts.without_erased(
      lists.load(held), [concept.erase for concept in found]
    )
    found = tuple(
      dataclasses.replace(c, preserve=(*c.preserve, *kept)) for c in found
    )
  concepts.check_concepts(found, allow_conflict=allow_conflict)
  return found
