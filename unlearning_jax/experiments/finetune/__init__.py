"""Innocent tuning of a model, erased or not: does the concept come back?

settings    what a run depends on, checked
images      its captioned images
parts       partition, step, first state; a state as a model
run         the run
"""

from unlearning_jax.experiments.finetune.images import (
  check_batch,
  check_overlap,
  data_of,
  encode,
  examples,
)
from unlearning_jax.experiments.finetune.parts import (
  check_start,
  phrase_states,
  prepare,
  programs,
  tuned_params,
  with_remat,
)
from unlearning_jax.experiments.finetune.run import edits, listed, run
from unlearning_jax.experiments.finetune.settings import (
  DEFENSES,
  Data,
  Settings,
)

__all__ = [
  "DEFENSES", "Data", "Settings", "check_batch", "check_overlap", "check_start",
  "data_of", "edits", "encode", "examples", "listed", "phrase_states",
  "prepare", "programs", "run", "tuned_params", "with_remat",
]  # fmt: skip
