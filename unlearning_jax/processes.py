"""The processes of one run: how they find each other, wait, and end.

A process that waits in a collective hears nothing. So each has a watch, which
reads what the others say of their errors, and ends a process that waits for one
that failed.
"""

import atexit
import contextlib
import itertools
import json
import os
import re
import sys
import threading
import time
import zlib
from collections.abc import Iterator
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
# One that cannot go on without a process that failed is ended so much later: it
# may be about to raise the same error. Outside of shared steps it has work of
# its own, and comes to a wait.
STUCK_S, LONG_S = 10, 600
_WATCH_S = 2
_TOLD = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_BY_HAND = re.compile(r"([^=,\s]+:\d+),(\d+),(\d+)")
_SLURM_PORTS = 61440, 4096
# Between two looks at who is here.
_LOOK_S, _LOOK_MOST_S = 0.01, 0.5
# What the processes write for each other.
_KEY = "unlearning_jax"
_STOPPED = f"{_KEY}/stopped/"
_FAILED = f"{_KEY}/failed/"
# Where one that ends with an error says so, in the place of a wait's number.
_LEFT = "left"
# Each wait needs a new name; every process passes all of them in order.
_BARRIERS = itertools.count()


class _Here:
  """Where this process is."""

  # The number of the last wait that it has come to.
  wait = -1
  # Whether it is in steps that all processes share.
  together = False


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
  if jax.process_count() > 1:
    _start_watch()


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
  _Here.wait = next(_BARRIERS)
  here, own = f"{_KEY}/{_Here.wait}/", jax.process_index()
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
    for index, why in _failures(client):
      if index not in said:
        raise PartedError(f"process {index} failed: {why}")
    stops.check()
    time.sleep(pause)
    # Many processes ask the same coordinator.
    pause = min(1.2 * pause, _LOOK_MOST_S)


def say_failed(error: BaseException, *, leaves: bool = False):
  """Says that a part of the run failed here, in which others may be, too.

  A process in that part is ended, unless it comes to this one's next wait: it
  may be in a collective, which would wait for ever.

  Args:
    error: what was raised.
    leaves: whether this process ends, and comes to no wait.
  """
  if jax.process_count() == 1:
    return
  at = _LEFT if leaves else _Here.wait + 1
  # What one that parted says names the other error already.
  kind = "" if isinstance(error, PartedError) else f"{type(error).__name__}: "
  why = f"{kind}{error}"[:2000]
  # The coordinator may have gone: then all end anyway.
  with contextlib.suppress(RuntimeError):
    _coordinator().key_value_set(
      f"{_FAILED}{at}/{jax.process_index()}", json.dumps(why), True
    )


@contextlib.contextmanager
def together(shared: bool) -> Iterator[None]:
  """Inside, this process takes steps that no process takes alone.

  Args:
    shared: False does nothing: the steps are this process's own.
  """
  before, _Here.together = _Here.together, _Here.together or shared
  try:
    yield
  finally:
    _Here.together = before


def _failures(client: Any, after: int | None = None) -> list[tuple[int, str]]:
  """The processes that have ended with an error, and why.

  Args:
    client: the coordinator's.
    after: the number of this process's last wait: also those that wait at a
      later one after an error.
  """
  found = []
  for key, text in client.key_value_dir_get(_FAILED):
    at, _, index = key.removeprefix(_FAILED).partition("/")
    if at == _LEFT or (after is not None and int(at) > after):
      found.append((int(index), at == _LEFT, json.loads(text)))
  return [(index, why) for index, _, why in sorted(found, key=lambda f: -f[1])]


def _start_watch():
  ends = threading.Event()
  watch = threading.Thread(
    target=_watch,
    args=(_coordinator(), jax.process_index(), ends),
    daemon=True,
  )
  watch.start()

  def end():
    # A thread inside the client would abort an interpreter that ends.
    ends.set()
    watch.join(_WATCH_S)

  atexit.register(end)


def _watch(client: Any, own: int, ends: threading.Event):
  """Ends this process where it waits for one that has failed."""
  since = None
  while not ends.wait(_WATCH_S):
    try:
      found = [one for one in _failures(client, _Here.wait) if one[0] != own]
      # Nearly always nobody has failed: then the coordinator is asked once.
      left = bool(found) and any(one[0] != own for one in _failures(client))
    except RuntimeError:
      # It may be busy; JAX ends the processes of a coordinator that has gone.
      continue
    if not found:
      since = None
      continue
    since = since or time.monotonic()
    limit = STUCK_S if left or _Here.together else LONG_S
    if time.monotonic() - since >= limit:
      _end(own, *found[0])


def _end(own: int, index: int, why: str):
  """Ends this process, whatever its other threads wait for."""
  error = PartedError(
    f"process {index} failed, and this one waits for it: {why}"
  )
  # Nothing may keep it from its end, such as a full disk below stderr.
  try:
    print(f"process {own}: error: {error}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    say_failed(error, leaves=True)
    # Together with the one that failed, which waits for that.
    jax.distributed.shutdown()
  finally:
    os._exit(1)


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
