"""How programs compile soonest; and how many are compiled, cached or not."""

import contextlib

from jax import monitoring

# For programs that run a few times, whose cost is compiling: no optimizations,
# the older emitter of fused loops, and a program in one part, not in one for
# each core. A gradient compiles in a third of the time, and its loops take
# twice as long.
SOONEST = {
  "xla_backend_optimization_level": 0,
  "xla_llvm_disable_expensive_passes": True,
  "xla_cpu_use_fusion_emitters": False,
  "xla_cpu_parallel_codegen_split_count": 1,
}


@contextlib.contextmanager
def programs():
  """A list that gets an entry for every program of the block."""
  found = []

  def listen(event, seconds, **_):
    if event == "/jax/core/compile/backend_compile_duration":
      found.append(seconds)

  monitoring.register_event_duration_secs_listener(listen)
  try:
    yield found
  finally:
    monitoring.unregister_event_duration_listener(listen)
