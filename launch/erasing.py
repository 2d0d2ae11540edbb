"""An erasure as a config describes it, for `erase` and `attack_matrix`."""

import dataclasses
import pathlib
from typing import Any

import jax

from unlearning_jax import closed_form, concepts, erasures


def erase(
  path: pathlib.Path, sd: Any, params: Any, config: Any
) -> closed_form.Edit:
  """The edit: made, or read back where an earlier start had made it.

  Args:
    path: of the edit's file; process 0 writes it.
    sd: the model.
    params: its parameters.
    config: `method`, `hparams`, `concepts` and `seed`.
  """
  if path.exists():
    return closed_form.load_edit(path)
  phrases = wanted(config)
  made = erasures.bind(config.method, config.hparams)(
    sd, params, phrases, jax.random.key(config.seed)
  )
  if not isinstance(made, closed_form.Edit):
    made = closed_form.edit_between(
      params, made, method=config.method, concepts=phrases, diagnostics={}
    )
  if jax.process_index() == 0:
    closed_form.save_edit(made, path)
  return made


def wanted(config: Any) -> tuple[concepts.Concept, ...]:
  """The concepts that the config lists.

  Raises:
    ValueError: an unknown key; a blank, repeated or contradictory phrase.
  """
  known = [field.name for field in dataclasses.fields(concepts.Concept)]
  for concept in config.concepts:
    for key in concept:
      concepts.check_choice("concepts key", key, known)
  listed = tuple(concepts.Concept(**concept) for concept in config.concepts)
  concepts.check_concepts(listed)
  return listed
