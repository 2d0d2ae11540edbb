"""Erases concepts once, reads the result back after a restart, and draws."""

import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from unlearning_jax import (
  checking,
  checkpoints,
  concepts,
  durable,
  erasures,
  finetune,
  guidance,
  lists,
  probe,
  processes,
  stable_diffusion,
  tokens,
)
from unlearning_jax.closed_form import statistics
from unlearning_jax.concepts import Concept
from unlearning_jax.edits import Edit, save_edit
from unlearning_jax.erasures import NO_HOOKS, Erasure, Hooks
from unlearning_jax.experiments import common, drawing, evaluate
from unlearning_jax.guidance import Guidance
from unlearning_jax.model import Model, called
from unlearning_jax.probe.measure import measure
from unlearning_jax.record import Recorder, tracking, training_log
from unlearning_jax.report.comparison import BASE
from unlearning_jax.settings import Output
from unlearning_jax.stable_diffusion import Params

STATISTICS = "statistics.safetensors"
# What a killed run goes on from.
_STATES, _DRAWN = "checkpoints", "drawn"


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
  erasure, phrases = settings.erasure, settings.phrases
  if tensorboard:
    tracking.package("tensorboardX", "tensorboard")
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
  file = record.path / common.EDIT
  found = made(
    file,
    model,
    erasure,
    phrases,
    settings.seed,
    recorded(record, every, tensorboard=tensorboard),
    record.is_writer,
    strict,
  )
  tidy(record)
  erased = model.with_made(found)
  known = probe.of(file)
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
  hooks: Hooks = NO_HOOKS,
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
    hooks: see `erasures.Hooks`.
    writes: True in the one of several processes that keeps the result.
    strict: whether an erasure that seems to have failed is an error.

  Raises:
    ValueError: the erasure cannot be made; with `strict`, the probe says that
      it failed.
  """
  guided = path.with_name(common.GUIDANCE)
  for file in (path, guided):
    if file.exists():
      if known := probe.of(path):
        known.check(erasure.method, strict)
      return common.read_made(file)
  key = jax.random.key(seed)
  found = erasure(model.sd, model.params, phrases, key, hooks)
  probed(path, model, found, phrases, writes=writes, strict=strict)
  if writes and isinstance(found, Guidance):
    guidance.save(found, guided)
  elif writes and isinstance(found, Edit):
    save_edit(found, path)
  return found


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


def keeping(folder: pathlib.Path, writes: bool) -> Hooks:
  """Hooks that keep the statistics from which `launch.amend` goes on."""

  def keep(found: erasures.Saved):
    if writes:
      found.save(folder / STATISTICS)

  return Hooks(keep=keep)


def recorded(run: Recorder, every: int, *, tensorboard: bool = False) -> Hooks:
  """Hooks that show, record and resume the parts that take long.

  Args:
    run: the record.
    every: steps between checkpoints.
    tensorboard: True writes TensorBoard events too.
  """
  return dataclasses.replace(
    keeping(run.path, run.is_writer),
    collect=functools.partial(_collect, run),
    trainer=functools.partial(_train, run, every, tensorboard),
  )


def tidy(run: Recorder):
  """Removes checkpoints and drawn images once the edit is made."""
  processes.wait_for_all("edit made")
  if run.is_writer:
    for name in (_STATES, _DRAWN):
      shutil.rmtree(run.path / name, ignore_errors=True)


def _train(
  run: Recorder,
  every: int,
  tensorboard: bool,
  *args: Any,
  num_steps: int,
  **options: Any,
) -> Params:
  """`finetune.train_erasure`, which goes on from the last checkpoint."""
  saved, at = run.path / _STATES, range(every, num_steps, every)
  done = checkpoints.latest_step(saved) or 0

  def begin(state: finetune.TrainState) -> finetune.TrainState:
    # On the host, since each process trains on devices of its own.
    return checkpoints.restore(saved, jax.device_get(state)) if done else state

  def on_state(now: int, state: finetune.TrainState):
    if now in at:
      run.guard()
      checkpoints.save(saved, now, jax.device_get(state))

  log = training_log.TrainingLog(
    run, "train", num_steps, done, tensorboard=tensorboard
  )

  def on_stop(now: int, state: finetune.TrainState):
    # Each process trains alone, and all would have to meet in a checkpoint.
    if jax.process_count() == 1:
      run.guard()
      checkpoints.save_new(saved, now, jax.device_get(state))

  watch = finetune.Watch(
    at=at, on_metrics=log, on_state=on_state, on_stop=on_stop
  )
  with log:
    return finetune.train_erasure(
      *args, num_steps=num_steps, begin=begin, watch=watch, **options
    )


def _collect(
  run: Recorder, name: str, count: int, make: Callable[[int], np.ndarray]
) -> list[np.ndarray]:
  """The results of `make` for 0 to count - 1, kept until the edit is made."""
  folder, found = run.path / _DRAWN, []
  files = [folder / f"{name}-{i:05}.safetensors" for i in range(count)]
  done = sum(file.exists() for file in files)
  with run.progress(f"draw {name}", count, done=done) as bar:
    for file in files:
      if file.exists():
        found.append(durable.load_tensors(file)[0][name])
        continue
      found.append(make(len(found)))
      if run.is_writer:
        run.guard()
        durable.save_tensors(file, {name: found[-1]}, {})
      bar.update()
  return found
