"""The processes of one run on this machine: started and ended together."""

import contextlib
import os
import pathlib
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any

from .. import places

# So long after one failed, the others are killed.
GRACE_S = 30
PLATFORMS = ("cpu", "gpu")
# A terminal that closes asks for a stop.
_PASSED: dict[int, int] = {signal.SIGHUP: signal.SIGTERM}


def environments(
  processes: int, devices: int, platform: str = "cpu"
) -> list[dict[str, str]]:
  """What each process finds in its environment besides.

  Args:
    processes: their number; several learn where the first one listens.
    devices: the devices of each.
    platform: `cpu` makes so many CPU devices; `gpu` gives each process GPUs of
      its own, in order.
  """
  found = []
  for i in range(processes):
    own = [str(i * devices + j) for j in range(devices)]
    every = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    if platform == "gpu":
      every = {"JAX_CUDA_VISIBLE_DEVICES": ",".join(own)}
    found.append(every)
  if processes > 1:
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      address = f"127.0.0.1:{free.getsockname()[1]}"
    for i, one in enumerate(found):
      one["JAX_COORDINATOR_ADDRESS"] = address
      # Else it listens on all of the machine's networks.
      one["JAX_COORDINATOR_BIND_ADDRESS"] = address
      one["JAX_NUM_PROCESSES"] = str(processes)
      one["JAX_PROCESS_ID"] = str(i)
  return found


def run(
  command: Sequence[str],
  added: Sequence[Mapping[str, str]],
  logs: pathlib.Path,
) -> int:
  """Runs a command in several processes, to the end of the last one.

  Each process appends to `process-<i>.log`; the first is also shown. If one
  fails, the others are asked to stop, and killed after `GRACE_S`. At the end
  the first that failed is named again: JAX aborts the others of a process that
  was killed, with many words. A signal to this process reaches all of them.

  Args:
    command: of every process.
    added: the environment of each process besides this one's.
    logs: the folder of their logs.

  Returns:
    The status of the first that failed; else the highest.
  """
  logs.mkdir(parents=True, exist_ok=True)
  group = _Group()
  with group.forwarding():
    try:
      for i, more in enumerate(added):
        group.start(command, {**os.environ, **more}, logs / f"process-{i}.log")
      return group.wait()
    finally:
      group.send(signal.SIGKILL)


class _Group:
  """Processes, in the order of their start."""

  def __init__(self):
    self._started: list[subprocess.Popen[bytes]] = []
    self._logs: list[pathlib.Path] = []
    self._ended: queue.SimpleQueue[int] = queue.SimpleQueue()
    self._asked = False

  def start(
    self, command: Sequence[str], environment: dict[str, str], log: pathlib.Path
  ):
    index = len(self._started)
    with log.open("ab") as file:
      process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=file if index else subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # Ctrl-C reaches this process alone, which passes it on once.
        process_group=0,
      )
    self._started.append(process)
    self._logs.append(log)
    watch = threading.Thread(target=self._watch, args=(index,), daemon=True)
    watch.start()

  def _watch(self, index: int):
    process = self._started[index]
    if process.stdout is not None:
      with self._logs[index].open("ab", buffering=0) as log:
        while chunk := os.read(process.stdout.fileno(), 2**16):
          # A full disk or a closed terminal must not block the process.
          with contextlib.suppress(OSError):
            log.write(chunk)
          with contextlib.suppress(OSError):
            sys.stdout.write(chunk.decode(errors="replace"))
            sys.stdout.flush()
    process.wait()
    self._ended.put(index)

  def send(self, number: int):
    for process in self._started:
      process.send_signal(number)

  @contextlib.contextmanager
  def forwarding(self) -> Iterator[None]:
    """Inside, a signal to this process goes to all of them."""

    def forward(number: int, _: FrameType | None):
      # A process inside a compiler does not hear a second signal.
      self.send(signal.SIGKILL if self._asked else _PASSED.get(number, number))
      self._asked = True

    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2]
    # nohup asks to outlive the terminal.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
      numbers.append(signal.SIGHUP)
    before: dict[int, Callable[..., Any] | int | None] = {
      number: signal.signal(number, forward) for number in numbers
    }
    try:
      yield
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)

  def wait(self) -> int:
    failed, deadline, first, statuses = None, None, 0, []
    while len(statuses) < len(self._started):
      left = None if deadline is None else max(0, deadline - time.monotonic())
      try:
        index = self._ended.get(timeout=left)
      except queue.Empty:
        self.send(signal.SIGKILL)
        deadline = None
        continue
      status = self._started[index].returncode
      statuses.append(status if status >= 0 else 128 - status)
      if failed is None and status not in places.ENDED:
        failed, first = statuses[-1], index
        _say(f"process {index} {_became(status)}; the others are to stop")
        # A second signal would break off what the first asked to be saved.
        if not self._asked:
          self.send(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
    if failed is None:
      return max(statuses)
    self._say_first(first)
    return failed

  def _say_first(self, index: int):
    """Names the first that failed, below what the others say as they end."""
    log = self._logs[index]
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    ends = "" if index == 0 else "\n  ".join(["", *lines[-20:]])
    became = _became(self._started[index].returncode)
    _say(f"the first to fail: process {index} {became}; see {log}{ends}")


def _became(status: int) -> str:
  """How a process ended, in words."""
  if status >= 0:
    return f"ended with status {status}"
  return f"was killed by signal {-status} ({signal.strsignal(-status)})"


def _say(text: str):
  print(text, file=sys.stderr, flush=True)
