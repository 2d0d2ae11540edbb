"""The processes of one run: how they find each other, wait, and end."""

import itertools
import json
import os
import re
import sys
import time
import zlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from unlearning_jax import stops

# A process that is silent for so long is dead.
HEARTBEAT_S = 30
# A process that fails leaves; the others are ended so much later. One that ends
# well waits for the others first, see `wait_for_all`, so this can be short.
SHUTDOWN_S = 20
# A process that has stopped waits so long for the others to stop too.
STOPPED_S = 90
_TOLD = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_BY_HAND = re.compile(r"([^=,\s]+:\d+),(\d+),(\d+)")
_SLURM_PORTS = 61440, 4096
# Between two looks at who is here.
_LOOK_S, _LOOK_MOST_S = 0.01, 0.5
# What the processes write for each other.
_KEY = "unlearning_jax"
_STOPPED = f"{_KEY}/stopped/"
# Each wait needs a new name; every process passes all of them in order.
_BARRIERS = itertools.count()


def name_coordinator(text: str):
  """Names the coordinator, the processes and this one's index by hand.

  No cluster is looked for then.

  Args:
    text: `host:port,n,i`: where process 0 listens, the number of processes, and
      the index of this one, from 0.

  Raises:
    ValueError: the text has another form, or there is no such index.
  """
  found = _BY_HAND.fullmatch(text)
  if found is None or int(found[3]) >= int(found[2]):
    raise ValueError(
      f"--coordinator={text!r}: must be host:port,n,i, with i from 0 to n-1; "
      "as in --coordinator=node0:8476,2,0"
    )
  os.environ.update(zip(_TOLD, found.groups(), strict=True))


def initialize_distributed(wanted: bool, *, polled: bool = False):
  """Joins the other processes of the run; call it before anything else of JAX.

  JAX finds the coordinator itself on Cloud TPU, SLURM and MPI. For other
  machines call `name_coordinator` before, or set JAX_COORDINATOR_ADDRESS,
  JAX_NUM_PROCESSES and JAX_PROCESS_ID. A failure is an error, so that no
  process works alone by mistake.

  Args:
    wanted: False does nothing.
    polled: whether the run asks `stops.asked` after every step. If not, a
      SIGTERM stops each process that gets it.

  Raises:
    ValueError: there is no coordinator, a variable is not a number, or a
      process of another run has joined.
  """
  if not wanted:
    return
  if port := _slurm_port():
    os.environ.setdefault("JAX_COORDINATOR_PORT", str(port))
  # JAX's own handler of SIGTERM does nothing that is not polled.
  jax.config.update("jax_enable_preemption_service", polled)
  # On Kubernetes the search fails without a token, even if nothing is sought.
  told = all(name in os.environ for name in _TOLD)
  count, index = map(_number, _TOLD[1:])
  try:
    jax.distributed.initialize(
      num_processes=count,
      process_id=index,
      cluster_detection_method="deactivate" if told else None,
      heartbeat_timeout_seconds=HEARTBEAT_S,
      shutdown_timeout_seconds=SHUTDOWN_S,
    )
  except (ValueError, TypeError) as error:
    raise ValueError(
      f"--distributed: no cluster says who takes part: {error} On SLURM start "
      "each process with srun; elsewhere name all, --coordinator=host:port,n,i"
    ) from error
  # On CPUs the first collective gives up after 30 s. It runs now, while all
  # processes are here.
  marks = multihost_utils.process_allgather(np.uint32(_mark()))
  strangers = np.flatnonzero(marks != np.ravel(marks)[0])
  if len(strangers):
    raise ValueError(
      f"--distributed: process {strangers[0]} joined with another command "
      "than process 0, so two runs share one coordinator; give each a "
      "JAX_COORDINATOR_ADDRESS (or, on SLURM, a JAX_COORDINATOR_PORT) of its "
      "own"
    )


def _slurm_port() -> int | None:
  """A port for this job and step; JAX's own is the same for all steps."""
  job, step = (os.environ.get(f"SLURM_{n}_ID", "") for n in ("JOB", "STEP"))
  if not (job.isdecimal() and step.isdecimal()):
    return None
  first, count = _SLURM_PORTS
  return first + (int(job) + 97 * int(step)) % count


def _mark() -> int:
  """A number that only the processes of one run share."""
  own = [os.environ.get(f"SLURM_{name}_ID") for name in ("JOB", "STEP")]
  # `--coordinator` says which process this is; the rest is the same for all.
  command = [_BY_HAND.sub(r"\1,\2", word) for word in sys.argv[1:]]
  return zlib.crc32(json.dumps([command, own]).encode())


def _number(name: str) -> int | None:
  """The number in an environment variable; None if it is not set."""
  value = os.environ.get(name)
  if value is not None and not value.isdecimal():
    raise ValueError(f"{name}={value!r}: must be a number")
  return None if value is None else int(value)


class PartedError(OSError):
  """The processes do different things: a part of the run failed in some."""


def wait_for_all(what: str, word: str = "") -> list[str]:
  """Waits until every process is here, before one reads what others wrote.

  A collective would give up early, and JAX's barrier hears no signal. JAX ends
  this process too when another dies.

  Args:
    what: names this wait, in all processes alike.
    word: what this process says to the others.

  Returns:
    The words of all processes, by index.

  Raises:
    Stopped: a signal asked this process to stop, or stopped another.
    PartedError: another process waits at another place.
  """
  if jax.process_count() == 1:
    return [word]
  # The others would go on without one that announces itself and stops.
  stops.check()
  client, pause = _coordinator(), _LOOK_S
  here, own = f"{_KEY}/{next(_BARRIERS)}/", jax.process_index()
  client.key_value_set(f"{here}{own}", json.dumps([what, word]))
  while True:
    found = client.key_value_dir_get(here)
    if client.key_value_dir_get(_STOPPED):
      raise stops.Stopped()
    said = {int(k.rpartition("/")[2]): json.loads(v) for k, v in found}
    for index, (other, _) in sorted(said.items()):
      if other != what:
        raise PartedError(
          f"process {own} waits at {what!r}, and process {index} at {other!r}: "
          "a part of the run failed in one of them alone. Its error is above, "
          "or in a failed.txt of the run; run the same command again"
        )
    if len(said) == jax.process_count():
      return [said[index][1] for index in sorted(said)]
    stops.check()
    time.sleep(pause)
    # Many processes ask the same coordinator.
    pause = min(1.2 * pause, _LOOK_MOST_S)


def say_stopped():
  """Says that this process stops: the others do where they wait for it.

  It waits until all have stopped, since one that leaves ends those that are
  still in a row or a compilation, see `SHUTDOWN_S`. Not for ever: others may
  not have been asked. A second signal ends it at once.
  """
  if (count := jax.process_count()) == 1:
    return
  client, until = _coordinator(), time.monotonic() + STOPPED_S
  client.key_value_set(f"{_STOPPED}{jax.process_index()}", "stopped")
  while len(client.key_value_dir_get(_STOPPED)) < count:
    if time.monotonic() > until:
      return
    time.sleep(_LOOK_MOST_S)


def _coordinator() -> Any:
  """What all processes can write to and read."""
  # The import takes a second, which a single process does not need.
  from orbax.checkpoint import multihost

  return multihost.get_jax_distributed_client()
