"""Does it stay gone? A study: erase once, tune many ways, measure.

keys       names of cells and rows
settings   what a study is of, checked
plan       which cells tune together, and what it costs
study      its rows, and what cells share
tuning     a cell, or a pack of them
summary    CSV and page
run        all of it
"""

from unlearning_jax.experiments.resurgence.keys import Cell
from unlearning_jax.experiments.resurgence.run import described, run, setup
from unlearning_jax.experiments.resurgence.settings import Settings, with_edits

__all__ = ["Cell", "Settings", "described", "run", "setup", "with_edits"]
