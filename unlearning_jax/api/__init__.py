"""The verbs of `import unlearning_jax as ul`, for notebooks.

They build settings and call the experiments, as the launch scripts do. The same
settings give the same rows. `out` names a folder that keeps the run; without
it, memory keeps the run. Results show themselves and carry `.rows`.
"""

from unlearning_jax.api.attacking import attack
from unlearning_jax.api.auditing import audit
from unlearning_jax.api.erasing import Subject, concept, erase
from unlearning_jax.api.judging import evaluate, grid, resurgence
from unlearning_jax.api.listing import (
  attacks,
  concepts,
  judge,
  methods,
  metric,
  protocol,
  protocols,
  published,
)
from unlearning_jax.api.measuring import measure
from unlearning_jax.api.runs import leaderboard, open
from unlearning_jax.api.sweeping import sweep
from unlearning_jax.api.tuning import finetune
from unlearning_jax.concepts import Concept
from unlearning_jax.convert.inspection import inspect
from unlearning_jax.model import Model, load
from unlearning_jax.probe import ErasureWarning

__all__ = [
  "Concept", "ErasureWarning", "Model", "Subject", "attack", "attacks",
  "audit",
  "concept", "concepts", "erase", "evaluate", "finetune", "grid", "inspect",
  "judge", "leaderboard", "load", "measure", "methods", "metric", "open",
  "protocol", "protocols", "published", "resurgence", "sweep",
]  # fmt: skip
