"""One verb over a grid of settings, in one table.

keys       keys of a grid, and the types of their values
grid       its cells and their ids
verbs      how each verb runs a cell
workers    take the cells, one worker or several that share the folder
running    runs the cells that a worker has taken
folder     whose a folder is, and what has become of its cells
figures    the numbers of a finished cell
table      CSV and page
"""

from unlearning_jax.experiments.sweep.folder import described
from unlearning_jax.experiments.sweep.grid import (
  Base,
  Cell,
  Sweep,
  parsed,
  plan,
)
from unlearning_jax.experiments.sweep.table import lines, printed, written
from unlearning_jax.experiments.sweep.verbs import VERBS, of_config
from unlearning_jax.experiments.sweep.workers import part_of, run

__all__ = [
  "VERBS", "Base", "Cell", "Sweep", "described", "lines",
  "of_config", "parsed", "part_of", "plan", "printed", "run", "written",
]  # fmt: skip
