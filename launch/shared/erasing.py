"""An erasure as a config describes it, for `erase` and `attack_matrix`."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax

from unlearning_jax import closed_form, concepts, erasures, lists


def erase(
  path: pathlib.Path, sd: Any, params: Any, config: Any
) -> closed_form.Edit:
  """The edit: made, or read back where an earlier start had made it.

  Args:
    path: of the edit's file; process 0 writes it, and beside it what
      `launch.amend` needs, where the method has that.
    sd: the model.
    params: its parameters.
    config: `method`, `hparams`, `concepts` and `seed`.
  """
  if path.exists():
    return closed_form.load_edit(path)
  phrases, hparams = wanted(config), dict(config.hparams)
  if "keep" in erasures.hyperparameters(config.method):
    hparams["keep"] = functools.partial(_keep, path.parent)
  made = erasures.bind(config.method, hparams)(
    sd, params, phrases, jax.random.key(config.seed)
  )
  if not isinstance(made, closed_form.Edit):
    made = closed_form.edit_between(
      params, made, method=config.method, concepts=phrases, diagnostics={}
    )
  if jax.process_index() == 0:
    closed_form.save_edit(made, path)
  return made


def _keep(folder: pathlib.Path, statistics: Any):
  if jax.process_index() == 0:
    statistics.save(folder / "statistics.safetensors")


def wanted(config: Any) -> tuple[concepts.Concept, ...]:
  """The concepts that the config lists, each holding its list as well.

  Raises:
    ValueError: an unknown key or list; a blank, repeated or contradictory
      phrase.
  """
  known = [field.name for field in dataclasses.fields(concepts.Concept)]
  for concept in config.concepts:
    for key in concept:
      concepts.check_choice("concepts key", key, known)
  listed = tuple(concepts.Concept(**concept) for concept in config.concepts)
  if config.get("preserve"):
    erased = {concepts.same_phrase(concept.erase) for concept in listed}
    held = tuple(
      phrase
      for phrase in lists.load(config.preserve)
      if concepts.same_phrase(phrase) not in erased
    )
    listed = tuple(
      dataclasses.replace(c, preserve=(*c.preserve, *held)) for c in listed
    )
  conflict = config.hparams.get("allow_conflict", False)
  concepts.check_concepts(listed, allow_conflict=conflict)
  return listed
