"""What `import unlearning_jax as ul` shows: verbs for a notebook.

They build settings and call the experiments, as the launch scripts do: the same
settings give the same rows. Where a run is kept is `out`, a folder; without it,
it is kept in memory. Results show themselves and carry `.rows`.
"""

from unlearning_jax.api.attacking import attack
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
)
from unlearning_jax.api.runs import open
from unlearning_jax.api.tuning import finetune
from unlearning_jax.concepts import Concept
from unlearning_jax.model import Model, load

__all__ = [
  "Concept", "Model", "Subject", "attack", "attacks", "concept", "concepts",
  "erase", "evaluate", "finetune", "grid", "judge", "load", "methods",
  "metric", "open", "protocol", "protocols", "resurgence",
]  # fmt: skip
