"""A run on a slice of Cloud TPU, as a script of `gcloud` commands."""

import dataclasses
import os
import pathlib
import shlex
import signal
import subprocess
from collections.abc import Sequence

from .. import places


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """What a queued resource asks for.

  Attributes:
    name: of the queued resource and of its slice.
    zone: where.
    type: the kind and size of the slice, as `v5litepod-16`.
    version: the TPU software, as `v2-alpha-tpuv5-lite`.
    spot: True takes a slice that may be taken back, for less.
    wheel: a wheel of this package, to install on every worker.
    setup: a line of shell for every worker, such as mounting a shared folder.
    max_restarts: slices after the first.
    keep: True leaves the slice when the run has ended.
  """

  name: str = ""
  zone: str = ""
  type: str = ""
  version: str = ""
  spot: bool = False
  wheel: str = ""
  setup: str = ""
  max_restarts: int = 10
  keep: bool = False


def script(job: Job, words: Sequence[str]) -> str:
  """The script that makes a slice, runs a verb on all its workers, ends it.

  Args:
    job: what it asks for.
    words: the run, a verb and its flags.

  Raises:
    ValueError: as `places.command`.
  """
  # Every worker has the same command, and JAX finds the others itself.
  command = places.command(words, 2, "~/run/bin/python")
  package = f"~/{pathlib.Path(job.wheel).name}"
  return places.rendered(
    pathlib.Path(__file__).with_name("slice.sh"),
    job=job,
    install=" && ".join(
      filter(
        None,
        # The images' own Python is older than this package's.
        [job.setup, "python3 -m pip install --quiet --user uv",
         "{ [ -e ~/run/bin/python ] ||"
         " ~/.local/bin/uv venv --quiet --python 3.12 ~/run; }",
         "~/.local/bin/uv pip install --quiet --python ~/run/bin/python"
         f" {package}'[tpu]'"],
      )
    ),
    # A lost connection may leave a process behind, which holds the devices.
    run="flock -w 600 -E 75 ~/run.lock "
    f"{command[0]} {shlex.join(command[1:])}",
  )  # fmt: skip


def start(text: str) -> int:
  """Runs a script; returns its status.

  A signal to this process reaches the script and whatever it has started, and
  the script deletes its slice before it ends.
  """
  process = subprocess.Popen(
    ["bash", "-c", text], stdin=subprocess.DEVNULL, process_group=0
  )
  numbers = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
  before = [
    signal.signal(number, lambda n, _: os.killpg(process.pid, n))
    for number in numbers
  ]
  try:
    return process.wait()
  finally:
    for number, handler in zip(numbers, before, strict=True):
      signal.signal(number, handler)
