"""Many launch scripts in one process, one after the other.

What one of them traced serves the next: the tests of attacks took 95 CPU s
where they took 131. For scripts that end by themselves in folders of their own,
and of whose process a test says nothing.
"""

import contextlib
import functools
import gc
import os
import pathlib
import runpy
import sys
import tempfile
import traceback
from collections.abc import Iterator
from typing import NamedTuple

from absl import app, flags

from tests.support import scripts


class Ended(NamedTuple):
  """A script that has ended."""

  returncode: int
  stdout: str
  stderr: str

  def finish(self) -> "Ended":
    """Expects a good end."""
    assert self.returncode == 0, self.stderr[-3000:]
    return self


def _forget(cwd: str):
  """Forgets what defined the script's flags, and the modules of its folder."""
  for name, module in [*sys.modules.items()]:
    file = getattr(module, "__file__", None) or ""
    if name.startswith(("launch", "unlearning_jax.launch")) or (
      file.startswith(cwd) and not file.startswith(str(scripts.ROOT))
    ):
      del sys.modules[name]


def _status(name: str, arguments: list[str]) -> int:
  sys.argv = [name, *arguments]
  try:
    runpy.run_module(name, run_name="__main__", alter_sys=True)
  except SystemExit as end:
    if isinstance(end.code, str):
      print(end.code, file=sys.stderr)
      return 1
    return end.code or 0
  except BaseException:
    traceback.print_exc()
    return 1
  return 0


def _serve(asked, environment: dict[str, str]):
  """Runs what comes through the pipe, until it closes."""
  scripts.begin()
  app.define_help_flags()
  own = set(flags.FLAGS)
  with contextlib.suppress(EOFError):
    while True:
      name, arguments, cwd, model, folder = asked.recv()
      with scripts.placed(environment, cwd, folder, model):
        status = _status(name, arguments)
      sys.stdout.flush()
      sys.stderr.flush()
      _forget(cwd)
      for flag in set(flags.FLAGS) - own:
        delattr(flags.FLAGS, flag)
      gc.collect()
      asked.send(status)


@contextlib.contextmanager
def process() -> Iterator[functools.partial[Ended]]:
  """A process; what it yields runs `launch.<name>` in it, or a dotted module.

  run("erase", "--config=...", cwd=folder, model=folder) -> Ended
  """
  context = scripts.server()
  ours, theirs = context.Pipe()
  started = context.Process(
    target=_serve, args=(theirs, {**os.environ, **scripts.QUICK})
  )
  started.start()
  theirs.close()
  try:
    yield functools.partial(_run, started, ours)
  finally:
    ours.close()
    started.join(30)
    started.kill()


def _run(
  process, asked, name: str, *arguments: object, cwd=scripts.ROOT, model=None
) -> Ended:
  with tempfile.TemporaryDirectory() as folder:
    asked.send(
      (scripts.module(name), [*map(str, arguments)], str(cwd), model, folder)
    )
    if not asked.poll(scripts.TIMEOUT):
      process.kill()
    try:
      status = asked.recv()
    except EOFError:
      process.join()
      status = process.exitcode
    files = (pathlib.Path(folder, name) for name in ("out", "err"))
    said = [file.read_text() if file.exists() else "" for file in files]
  return Ended(status, *said)
