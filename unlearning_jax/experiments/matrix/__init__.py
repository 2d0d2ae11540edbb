"""Every attack on every victim of every task: one table of it all.

settings   what a matrix is of, checked
run        its victims erased, its cells run
summary    CSV and page
"""

from unlearning_jax.experiments.matrix.run import Matrix, read_given, run
from unlearning_jax.experiments.matrix.settings import Cell, Erased, Settings

__all__ = ["Cell", "Erased", "Matrix", "Settings", "read_given", "run"]
