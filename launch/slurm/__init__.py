"""A job of SLURM that runs a verb, as a script for `sbatch`."""

import dataclasses
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Sequence

from .. import places

# In a run's flags it stands for the index of an array's job.
INDEX = "$SLURM_ARRAY_TASK_ID"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """What a job asks for.

  Attributes:
    nodes: machines.
    tasks_per_node: processes on each; 0 takes one, or one a GPU.
    gpus_per_node: GPUs of each machine; JAX gives each of several processes one
      of them, and a single process all.
    cpus_per_task: CPUs of each process; 0 for the cluster's, often one.
    time: the limit of one start, as SLURM writes it; "" for the cluster's.
    partition: the queue; "" for the cluster's.
    array: indices of a job array, as 0-9; "" for one job.
    notice: seconds before the limit at which the run is asked to stop.
    max_restarts: starts after the first.
    sbatch: more options of sbatch, such as `mem=64G`.
    setup: a line of shell that comes before the run.
    python: the interpreter on the nodes.
  """

  nodes: int = 1
  tasks_per_node: int = 0
  gpus_per_node: int = 0
  cpus_per_task: int = 0
  time: str = ""
  partition: str = ""
  array: str = ""
  notice: int = 120
  max_restarts: int = 20
  sbatch: tuple[str, ...] = ()
  setup: str = ""
  python: str = sys.executable

  def __post_init__(self):
    places.check_counts(self, "nodes", "notice")
    # On SLURM JAX takes the one device of a node that has the task's index.
    alone = self.nodes == self.tasks == 1
    if self.gpus_per_node and not alone and self.tasks != self.gpus_per_node:
      raise ValueError(
        f"--tasks_per_node={self.tasks_per_node}: JAX gives each of several "
        "processes one GPU; leave it out, or type --tasks_per_node="
        f"{self.gpus_per_node}"
      )

  @property
  def tasks(self) -> int:
    """Processes on each machine."""
    return self.tasks_per_node or self.gpus_per_node or 1


def script(job: Job, words: Sequence[str]) -> str:
  """The script of a job.

  Args:
    job: what it asks for.
    words: the run, a verb and its flags.

  Raises:
    ValueError: as `places.command`.
  """
  command = places.command(words, job.nodes * job.tasks, job.python)
  workers = words[0].replace("-", "_") in places.WORKERS
  if workers and job.gpus_per_node > 1 and job.tasks > 1:
    raise ValueError(
      f"--gpus_per_node={job.gpus_per_node}: each worker of a {words[0]} would "
      "take all GPUs of its node; type --gpus_per_node=1 --array=1-N for N "
      "workers, or --tasks_per_node=1 for one that has them all"
    )
  if job.array and not workers and INDEX not in shlex.join(words):
    raise ValueError(
      f"--array={job.array}: every job would be the same run; put '{INDEX}' "
      f"into its flags, as in --workdir='runs/{INDEX}'"
    )
  # An index of an array is known on the node only: no quotes keep it.
  typed = shlex.join(command).replace(INDEX, f"'\"{INDEX}\"'")
  return places.rendered(
    pathlib.Path(__file__).with_name("job.sh"),
    job=job, name=words[0], command=typed,
  )  # fmt: skip


def submit(text: str) -> str:
  """Submits a script; returns the number of its job.

  Raises:
    OSError: there is no sbatch.
    ValueError: SLURM refuses the job.
  """
  done = subprocess.run(
    ["sbatch", "--parsable"], input=text, capture_output=True, text=True
  )
  if done.returncode:
    raise ValueError(f"sbatch: {done.stderr.strip()}")
  return done.stdout.strip().partition(";")[0]
