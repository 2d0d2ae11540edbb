"""Lists the runs below a folder on one page, with links to their own.

  python -m launch.index runs

It writes `runs/index.html`. The page needs the runs' folders beside it.
"""

import sys

from . import flags


def main(argv: list[str]):
  """Writes the page and says where it is."""
  from unlearning_jax.report import index

  if len(argv) != 2:
    sys.exit("index: name one folder of runs: unlearning-jax index runs")
  print(f"index: {index.write(argv[1])}")


def listed() -> list[str]:
  """What a line of the page has."""
  return ["run", "verb", "started", "state", "verdicts"]


if __name__ == "__main__":
  flags.run(main, listed, names=True)
