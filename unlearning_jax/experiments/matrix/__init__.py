"""Every attack on every victim of every task, in one table.

settings   the settings of a matrix, checked
run        erases the victims and runs the cells
summary    CSV and page
"""

from unlearning_jax.experiments.matrix.run import Matrix, read_given, run
from unlearning_jax.experiments.matrix.settings import Cell, Erased, Settings

__all__ = ["Cell", "Erased", "Matrix", "Settings", "read_given", "run"]
