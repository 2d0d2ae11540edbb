"""Attacks every victim of every task with every attack; one table of it all.

  python -m launch.attack_matrix --workdir=runs/matrix \
    --config=configs/attack_matrix_shapes.py

Victims are the model itself, `base`, the config's erasures, which are made
here, and those that `--edits=<task>/<name>=<path>` brings. A cell that is done
is never run again, one that fails is recorded and the others go on; what was
killed is taken up again by the same command. Several processes share the cells.
`--list` says which attacks there are.
"""

import pathlib
import sys

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
  if failed:
    sys.exit(f"{failed} cells failed; see failed.txt in their folders")


def listed() -> list[str]:
  """The attacks."""
  from unlearning_jax import attacks

  return attacks.listing()


if __name__ == "__main__":
  flags.run(main, listed)
