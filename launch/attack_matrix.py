"""Attacks every victim of every task with every attack, in one table.

  python -m launch.attack_matrix --workdir=runs/matrix \
    --config=configs/attack_matrix_shapes.py

The victims are the model itself (`base`), the config's erasures, which this
script makes, and those of `--edits=<task>/<name>=<path>`. A finished cell never
runs again; a failed one is recorded, and the others go on. Start a killed
matrix again with the same command. Several processes share the cells. `--list`
prints the attacks.
"""

import pathlib

from absl.flags import DEFINE_list

from . import flags

_CONFIG = flags.config()
_WORKDIR = flags.workdir("The matrix's folder.")
_EDITS = DEFINE_list("edits", [], "More victims: <task>/<name>=<path>.")


def main(_: list[str]):
  """Flags to settings to the experiment."""
  from unlearning_jax.experiments import matrix

  given = flags.settings(matrix.Settings, _CONFIG.value)
  edits = matrix.read_given(given, _EDITS.value)
  failed = matrix.run(given, pathlib.Path(_WORKDIR.value), edits)
  return flags.status(
    failed, "cells failed; see failed.txt in their folders, or above"
  )


def listed() -> list[str]:
  """The attacks."""
  from unlearning_jax import attacks

  return attacks.listing()


if __name__ == "__main__":
  flags.run(main, listed)
