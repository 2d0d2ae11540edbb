"""Concepts and what their world knows of them; erasing them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from unlearning_jax import concepts, erasures, extensions, lists, probe
from unlearning_jax.api import given as given_
from unlearning_jax.api import holding
from unlearning_jax.api.runs import Path, opener
from unlearning_jax.closed_form import statistics
from unlearning_jax.concepts import Concept, Unsaid, check_choice
from unlearning_jax.experiments import common, hooks
from unlearning_jax.experiments import erase as experiment
from unlearning_jax.model import Model
from unlearning_jax.settings import Output


@dataclasses.dataclass(frozen=True)
class Subject:
  """What shall be erased: its phrases, and its name in its world.

  Attributes:
    name: the class's name, or the phrase.
    concepts: a concept for each phrase, with anchor and preserved phrases.
    task: object, style, identity or unsafe in an embedded world; elsewhere
      object, art or unsafe.
    world: the embedded world that knows it; "" for none.
  """

  name: str
  concepts: tuple[Concept, ...]
  task: str
  world: str = ""

  @property
  def target(self) -> dict[str, str]:
    """Task and name, in the form of `targets`.

    Raises:
      ValueError: no world knows it, so no judge looks for it.
    """
    if not self.world:
      raise ValueError(
        f"concept {self.name!r}: no embedded world knows it, so no judge looks "
        "for it; give a judge and its head: judge=..., targets=[{'head': ..., "
        f"'label': {self.name!r}}}]"
      )
    return {"task": self.task, "name": self.name}

  def __repr__(self) -> str:
    first = self.concepts[0]
    held = len(concepts.preserved_phrases(self.concepts))
    more = f" and {len(self.concepts) - 1} more phrases" * (
      len(self.concepts) > 1
    )
    source = f"filled in by {self.world}" if self.world else "as given"
    kept = f"{held} phrases preserved ({source})"
    if isinstance(first.preserve, Unsaid):
      kept = "ul.erase supplies the phrases to preserve"
    return (
      f"{self.task} {self.name!r}: {first.erase!r} -> {first.anchor!r}{more}, "
      f"{kept}"
    )


def concept(
  model: Model,
  name: str,
  *,
  anchor: str | None = None,
  preserve: str | Sequence[str] | None = None,
  task: str = "object",
) -> Subject:
  """A concept with what is known of it; its repr says what was filled in.

  Args:
    model: the base. An embedded world knows its classes, and fills in phrases,
      anchors and preserved phrases.
    name: a class of that world, or several of one task, as `star+moon`; for
      another model any phrase.
    anchor: what the phrase shall mean instead; None takes the world's anchor,
      or the one published for the task.
    preserve: phrases to preserve, or the name of a published list; `()` for
      none; None takes the world's, or a list that `ul.erase` supplies.
    task: object, art or unsafe, for a phrase that no world knows.

  Raises:
    ValueError: the world has no such class; a phrase is blank or equals its
      anchor.
  """
  model = given_.model("concept: model", model)
  if not isinstance(name, str):
    raise ValueError(f"concept: name={name!r} must be a text, as 'star'")
  concepts.check_choice("task", task, concepts.DEFAULT_ANCHORS)
  held = lists.load(preserve) if isinstance(preserve, str) else preserve
  if model.source in extensions.worlds():
    world = extensions.world(model.source)
    listed = world.concept(name)
    if anchor is not None or held is not None:
      listed = tuple(
        dataclasses.replace(
          one,
          anchor=one.anchor if anchor is None else anchor,
          preserve=one.preserve if held is None else tuple(held),
        )
        for one in listed
      )
    task = world.task_of(name.partition("+")[0])
    return Subject(name, listed, task, model.source)
  listed = concepts.make_concepts(name, anchor, held or (), task)
  if held is None:
    # `erase` supplies a list: which, the method says.
    listed = tuple(dataclasses.replace(c, preserve=Unsaid()) for c in listed)
  return Subject(name, listed, task)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """An erasure, as its record keeps it.

  Attributes:
    model: the source of the base.
    method: the erasure.
    hparams: the method's hyperparameters.
    concepts: the concepts to erase, fields of `Concept` each.
    seed: the seed that the method draws from.
    judge: always None, since nothing is drawn.
    kernels: how the model computes, see `models.fast`.
  """

  model: Output[str]
  method: Output[str]
  hparams: Output[dict[str, Any]]
  concepts: Output[tuple[dict[str, Any], ...]]
  seed: Output[int] = 0
  judge: Output[str | None] = None
  kernels: Output[str] = "exact"


def erase(
  model: Model,
  subject: Subject | Concept | Sequence[Concept] | str,
  method: str = "uce",
  *,
  seed: int = 0,
  out: Path | None = None,
  strict: bool = False,
  **hparams: Any,
) -> Model:
  """Erases a concept; `ul.methods()` lists who can.

  In an embedded world the method gets the recipe that was measured there, as
  in the shipped configs: its phrases, its scales.

  Args:
    model: the base; nothing may have been erased from it.
    subject: from `ul.concept`, or its name; or concepts of one's own, which
      are taken as they are.
    method: the erasure.
    seed: of everything that it draws.
    out: a folder that keeps the edit; None keeps it in memory.
    strict: refuses an erasure that the probe says has failed, instead of
      warning.
    **hparams: of the method, other than the recipe's or its defaults.

  Returns:
    The model with the edit, or kept from it by guidance; its `probe` says
    whether the concept is gone and others are not.

  Raises:
    ValueError: something was erased already; an unknown method or
      hyperparameter, with the nearest; what the method refuses; a phrase
      that is too long or has no tokens; with `strict`, a failed erasure.
  """
  model = given_.model("erase: model", model)
  if model.edit is not None or model.guidance is not None:
    raise ValueError(
      f"erase: {model.name} is erased already, and an edit of an edit is not "
      "the joint edit; erase everything at once from model.base"
    )
  statistics.check_unedited(model.source)
  check_choice("method", method, erasures.methods())
  listed, recipe = _recipe(model, subject, method)
  listed, scales, note = holding.supplied(model, method, listed)
  chosen = recipe | scales | hparams
  if not isinstance(seed, int):
    raise ValueError(f"erase: seed={seed!r} is not a whole number")
  bound = erasures.bind(method, chosen)
  concepts.check_concepts(
    listed, allow_conflict=chosen.get("allow_conflict", False)
  )
  experiment.check_phrases(model, bound, listed)
  given = Settings(
    model=model.source,
    method=method,
    hparams=chosen,
    concepts=tuple(dataclasses.asdict(one) for one in listed),
    seed=seed,
    **given_.computing(model),
  )
  run = opener(out, given)()
  common.begin(run, given, model.params)
  file = run.path / common.EDIT
  made = experiment.made(
    file, model, bound, listed, seed, hooks.recorded(run, 100),
    strict=strict,
  )  # fmt: skip
  hooks.tidy(run)
  run.mark_done()
  probed = probe.of(file)
  if probed and note:
    probed = dataclasses.replace(probed, note=note)
  erased = model.with_made(made)
  return dataclasses.replace(erased, probe=probed)


def _recipe(
  model: Model,
  subject: Subject | Concept | Sequence[Concept] | str,
  method: str,
) -> tuple[tuple[Concept, ...], dict[str, Any]]:
  """The method's phrases for a concept, and its hyperparameters."""
  if isinstance(subject, str):
    subject = concept(model, subject)
  if isinstance(subject, Subject):
    listed = subject.concepts
    if not subject.world:
      return listed, {}
    world = extensions.world(subject.world)
    # The method's own phrases, unless the user changed them.
    if listed == world.concept(subject.name):
      listed = world.concept(subject.name, method)
    return listed, dict(world.hparams(method, subject.task))
  own: list[Any] = [subject]
  if isinstance(subject, list | tuple):
    own = [*subject]
  for one in own:
    if not isinstance(one, Concept):
      raise ValueError(
        f"erase: subject={one!r} is not a concept; several are joined, "
        "'star+moon', or a list of ul.Concept"
      )
  return tuple(own), {}
