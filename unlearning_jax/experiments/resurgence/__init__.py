"""A study of resurgence: erase once, tune many ways, measure what comes back.

keys       ids of cells and rows
settings   the settings of a study, checked
plan       which cells tune together, and what a study costs
study      a study's rows, and what its cells share
tuning     tunes and measures a cell, or a pack of cells
summary    CSV and page
run        runs a study
"""

from unlearning_jax.experiments.resurgence.keys import Cell
from unlearning_jax.experiments.resurgence.run import described, run, setup
from unlearning_jax.experiments.resurgence.settings import Settings, with_edits

__all__ = ["Cell", "Settings", "described", "run", "setup", "with_edits"]
