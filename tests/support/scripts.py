"""Launch scripts: modules of this process, or processes of their own.

A process is a fork of one server that has imported the libraries, which takes
as long as many a run. `packaging_test` starts every script afresh.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import multiprocessing
import os
import pathlib
import runpy
import socket
import sys
import tempfile
from types import ModuleType
from unittest import mock

from absl import flags

from tests.support import cache, compiled

ROOT = pathlib.Path(__file__).resolve().parents[2]
TIMEOUT = 900
# What every script imports; none of them starts a device or a thread.
IMPORTS = [
  "ml_collections.config_flags", "optax", "transformers.models.clip",
  "transformers.models.clip.tokenization_clip",
  "unlearning_jax.stable_diffusion",
]  # fmt: skip
# Scripts get tiny budgets, whose cost is compiling.
QUICK = {
  "XLA_FLAGS": " ".join(
    f"--{name}={value}".lower() for name, value in compiled.SOONEST.items()
  )
}


def script(name: str) -> ModuleType:
  """`launch.<name>`; each script defines `--config` and others for itself.

  The flags of those imported before give way: a test sets what `main` reads.
  """
  owned = flags.FLAGS.flags_by_module_dict().items()
  names = [f.name for owner, own in owned if "launch." in owner for f in own]
  for flag in names:
    delattr(flags.FLAGS, flag)
  return importlib.import_module(f"unlearning_jax.launch.{name}")


def module(name: str) -> str:
  """A launch script's module; a name with dots is one."""
  return name if "." in name else f"launch.{name}"


@functools.cache
def server():
  """What processes of tests are forked from."""
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(IMPORTS)
  return context


@contextlib.contextmanager
def placed(environment, cwd, folder, model):
  """Where a script runs; its output is in `folder`."""
  for descriptor, file in ((1, "out"), (2, "err")):
    opened = os.open(f"{folder}/{file}", os.O_WRONLY | os.O_CREAT)
    os.dup2(opened, descriptor)
    os.close(opened)
  os.environ.clear()
  os.environ.update(environment)
  os.chdir(cwd)
  with mock.patch.object(sys, "path", [str(cwd), *sys.path]):
    if not model:
      yield
      return
    world = importlib.import_module("unlearning_jax.shapes.world")
    with mock.patch.object(world, "model_folder", lambda: model):
      yield


def begin():
  """What a process forked from the server does first."""
  # The server's imports, which the collector would copy to look at them; nor
  # need it look often at what tracing leaves, a tenth of what that takes.
  gc.freeze()
  gc.set_threshold(10_000, 20, 20)
  cache.share()


def _become(name, arguments, environment, cwd, folder, model):
  """What `python -m <name>` does."""
  begin()
  sys.argv = [name, *arguments]
  try:
    with placed(environment, cwd, folder, model):
      runpy.run_module(name, run_name="__main__", alter_sys=True)
  finally:
    # A forked process leaves these out: processes wait for each other here.
    atexit._run_exitfuncs()


class Run:
  """A launch script, or a module by its dots; `finish` or `kill` ends it.

  Args:
    model: a folder, which is then the Shapes world's model.
  """

  def __init__(self, name, *arguments, env=None, cwd=ROOT, model=None):
    self._files = tempfile.TemporaryDirectory()
    self._process = server().Process(
      target=_become,
      args=(
        module(name),
        list(map(str, arguments)), {**os.environ, **QUICK, **(env or {})},
        str(cwd), self._files.name, model,
      ),
    )  # fmt: skip
    self._process.start()

  def _read(self, file):
    path = pathlib.Path(self._files.name, file)
    return path.read_text() if path.exists() else ""

  @property
  def stdout(self):
    return self._read("out")

  @property
  def stderr(self):
    return self._read("err")

  @property
  def returncode(self):
    """None while it runs."""
    return self._process.exitcode

  def join(self, timeout=TIMEOUT):
    self._process.join(timeout)
    assert self.returncode is not None, f"not in {timeout} s: {self.stderr}"
    return self

  def finish(self):
    """Waits for the end, which must be a good one."""
    self.join()
    assert self.returncode == 0, self.stderr[-3000:]
    return self

  def ask(self):
    """Asks it to stop, as a scheduler does first."""
    self._process.terminate()

  def stop(self):
    """Asks it to stop; returns the exit status."""
    self.ask()
    return self.join().returncode

  def kill(self):
    """As a scheduler would that has lost patience."""
    self._process.kill()
    self._process.join()


def run(name: str, *arguments: object, **options) -> Run:
  """Runs a script to its end, good or bad."""
  return Run(name, *arguments, **options).join()


def run_all(runs: list[Run]) -> None:
  """Waits for all to end well; none outlives one that did not."""
  try:
    for started in runs:
      started.finish()
  finally:
    for started in runs:
      started.kill()


def slurm(
  processes: int, devices: int, quick: bool = False
) -> list[dict[str, str]]:
  """What SLURM would add to each process's environment.

  Args:
    quick: for numbers that need not be those of other devices to 1e-4.
  """
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  flags = (QUICK if quick else os.environ)["XLA_FLAGS"]
  flags += f" --xla_force_host_platform_device_count={devices}"
  every = {"XLA_FLAGS": flags}
  if processes == 1:
    return [every]
  every |= {
    "JAX_COORDINATOR_ADDRESS": address,
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_NTASKS": str(processes),
  }
  return [
    every | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}
    for i in range(processes)
  ]


def start(
  name: str,
  arguments: list[str],
  processes: int = 1,
  devices: int = 1,
  quick: bool = False,
  model: pathlib.Path | None = None,
) -> list[Run]:
  """Starts a script in so many processes, as SLURM would; see `Run`."""
  distributed = ["--distributed"] if processes > 1 else []
  return [
    Run(name, *arguments, *distributed, env=environment, model=model)
    for environment in slurm(processes, devices, quick)
  ]
