"""One compile cache for all that the tests start, whichever process compiles.

On CPUs JAX's keys hold the process's own devices, and only process 0 writes:
the second of two processes would compile all of a run, each time. As JAX does
for GPUs, keys leave out which devices a program was compiled for. The one that
comes first compiles, and the others wait for it.
"""

import contextlib
import fcntl
import pathlib
import threading

import jax
from jax._src import cache_key, compiler, distributed


def share() -> None:
  """Once a process, before it compiles."""
  hashed = cache_key._hash_serialized_compile_options
  cache_key._hash_serialized_compile_options = (
    lambda into, options, strip_device_assignment=False: hashed(
      into, options, strip_device_assignment=True
    )
  )
  cache_key._hash_accelerator_config = cache_key._hash_devices
  asked = threading.local()
  read, write, compile_ = (
    compiler._cache_read, compiler._cache_write,
    compiler._compile_and_write_cache,
  )  # fmt: skip

  def read_and_note(*arguments):
    asked.arguments = arguments
    return read(*arguments)

  def compile_once(*arguments):
    with _alone_with(arguments[-1]):
      found, _ = read(*asked.arguments)
      return compile_(*arguments) if found is None else found

  def write_from_any(*arguments):
    state = distributed.global_state
    own, state.process_id = state.process_id, 0
    try:
      write(*arguments)
    finally:
      state.process_id = own

  compiler._cache_read = read_and_note
  compiler._cache_write = write_from_any
  compiler._compile_and_write_cache = compile_once


@contextlib.contextmanager
def _alone_with(key):
  """Only one process at a time is here with this key of the cache."""
  folder = pathlib.Path(jax.config.jax_compilation_cache_dir)
  with (folder / ".locks").open("ab") as file:
    fcntl.lockf(file, fcntl.LOCK_EX, 1, int(key[-12:], 16))
    # Closing the file gives the lock back, as does the end of the process.
    yield
