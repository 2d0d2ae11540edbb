"""Erases concepts from a model and shows what it did.

  python -m launch.erase --config=configs/erase_uce.py:tiny --workdir=runs/uce

Writes `edit.safetensors` (apply it with `launch.evaluate --edits`); of UCE and
MACE `statistics.safetensors`, from which `launch.amend` adds, removes and
re-weights concepts; and, unless the config evaluates nothing, images before and
after and `report.html`.
"""

import dataclasses
import functools
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from launch import comparison
from unlearning_jax import (
  closed_form,
  concepts,
  erasures,
  lists,
  sharding,
  workdir,
)
from unlearning_jax.closed_form import statistics

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "The run's folder.", required=True
)
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join other processes.")


def erase(run: workdir.Workdir, sd: Any, params: Any, config: Any):
  """The edit: made, or read back where an earlier start had made it."""
  path = run.path / "edit.safetensors"
  if path.exists():
    return closed_form.load_edit(path)
  phrases, hparams = wanted(config), dict(config.hparams)
  if "keep" in erasures.hyperparameters(config.method):
    hparams["keep"] = functools.partial(_keep, run)
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


def _keep(run: workdir.Workdir, statistics: Any):
  if run.is_writer:
    statistics.save(run.path / "statistics.safetensors")


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
  if config.preserve:
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


def main(_):
  """Checks, erases, compares."""
  # The progress line is what a user follows; libraries only warn.
  logging.set_verbosity(logging.WARNING)
  sharding.initialize_distributed(_DISTRIBUTED.value)
  config = _CONFIG.value
  # Everything that can be wrong is found before anything is written or
  # compiled.
  erasures.bind(config.method, config.hparams)
  phrases = wanted(config)
  comparison.check(config)
  statistics.check_unedited(config.model)
  sd, params = comparison.load_model(config)
  comparison.check_fits(
    config,
    sd,
    [
      *(text for c in phrases for text in (c.erase, c.anchor)),
      *concepts.preserved_phrases(phrases),
    ],
  )
  run = comparison.open_run(_WORKDIR.value, config, params)
  edit = erase(run, sd, params, config)
  edits = {comparison.stage_name(edit): edit}
  comparison.compare(run, sd, params, edits, config)
  run.mark_done()


if __name__ == "__main__":
  flags.mark_flag_as_required("config")
  app.run(main)
