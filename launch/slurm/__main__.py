"""Submits a run to SLURM.

  python -m launch.slurm --nodes=2 --gpus_per_node=4 --time=04:00:00 -- \
    attack_matrix --config=attack_matrix_shapes --workdir=/shared/matrix

`--dry_run` prints the script. A run that is preempted, or reaches the limit of
its time, goes back into the queue and goes on from its record. With `--array`
each index starts the run, and '$SLURM_ARRAY_TASK_ID' in the run's flags is it.
"""

from absl import flags as absl_flags

from .. import flags
from . import Job, script, submit

_number, _text = absl_flags.DEFINE_integer, absl_flags.DEFINE_string
_number("nodes", 1, "Machines.")
_number("tasks_per_node", 0, "Processes on each; by default one, or one a GPU.")
_number("gpus_per_node", 0, "GPUs of each machine.")
_number("cpus_per_task", 0, "CPUs of each process.")
_text("time", "", "The limit of one start, as 04:00:00.")
_text("partition", "", "The queue.")
_text("array", "", "Indices of a job array, as 0-9%4.")
_number("notice", Job.notice, "Seconds before the limit to stop at.")
_number("max_restarts", Job.max_restarts, "Starts after the first.")
absl_flags.DEFINE_multi_string("sbatch", [], "More options, as mem=64G.")
_text("setup", "", "A line of shell before the run.")
_text("python", Job.python, "The interpreter on the nodes.")
_DRY_RUN = absl_flags.DEFINE_bool("dry_run", False, "Print the script only.")


def main(argv: list[str]):
  """Renders the script and submits it."""
  text = script(flags.built(Job), argv[1:])
  if _DRY_RUN.value:
    print(text, end="")
    return
  job = submit(text)
  print(f"job {job}; squeue --job={job} shows it, scancel {job} ends it")


if __name__ == "__main__":
  flags.run(main, names=True)
