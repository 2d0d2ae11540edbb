"""Runs a verb on a slice of Cloud TPU.

  python -m launch.tpu --name=pod --zone=us-west4-a --type=v5litepod-16 \
    --version=v2-alpha-tpuv5-lite --spot \
    --wheel=dist/unlearning_jax-0.2.0-py3-none-any.whl -- \
    attack_matrix --config=attack_matrix_shapes --workdir=/shared/matrix

It asks for the slice, installs the package on all workers, runs, and deletes
the slice. If a slice is taken back, the run goes on with a new one. `--dry_run`
prints the script.
"""

import pathlib

from absl import flags as absl_flags

from .. import flags
from . import Job, script, start

_text, _bool = absl_flags.DEFINE_string, absl_flags.DEFINE_bool
_text("name", None, "The slice's name.", required=True)
_text("zone", None, "Where it is.", required=True)
_text("type", None, "Its kind and size, as v5litepod-16.", required=True)
_text("version", None, "The TPU software.", required=True)
_bool("spot", False, "Take a slice that may be taken back.")
_text("wheel", None, "A wheel of this package, to install.", required=True)
_text("setup", "", "A line of shell for every worker, before the package.")
absl_flags.DEFINE_integer("max_restarts", Job.max_restarts, "New slices.")
_bool("keep", False, "Leave the slice when the run has ended.")
_DRY_RUN = _bool("dry_run", False, "Print the script only.")


def main(argv: list[str]) -> int:
  """Renders the script and runs it."""
  job = flags.built(Job)
  text = script(job, argv[1:])
  if _DRY_RUN.value:
    print(text, end="")
    return 0
  if not pathlib.Path(job.wheel).is_file():
    raise ValueError(
      f"--wheel={job.wheel}: no such file; make release-check writes one"
    )
  return start(text)


if __name__ == "__main__":
  flags.run(main, names=True)
