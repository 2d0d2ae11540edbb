"""One test bench for every module: eight CPU devices and a warm compiler."""

import gc
import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]

# The environment, because launch scripts started by tests must inherit it;
# before JAX is imported, because it reads these only then.
for name, value in {
  "JAX_PLATFORMS": "cpu",
  # torch's threads spin while they wait: with more threads than free cores a
  # tiny network takes ten times as long.
  "OMP_NUM_THREADS": "1",
  "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache/jax"),
  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}.items():
  os.environ.setdefault(name, value)
# LLVM's first level, which compiles a gradient in two thirds of the time and
# runs it as fast. Programs keep their operations; a level that is set stays.
_LEVEL = "--xla_backend_optimization_level"
if _LEVEL not in os.environ.get("XLA_FLAGS", ""):
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_LEVEL}=1"

import jax  # noqa: E402
import pytest  # noqa: E402

# jax.config, not the environment: eight devices for the tests' own process,
# one for the scripts that they start. Measured: one-device code is no slower.
jax.config.update("jax_num_cpu_devices", 8)
# A (b,) added to a (b, c) by accident is an error, not a broadcast.
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module")
def quick_compiler():
  """For tiny networks that run a few times: compiling is all that they cost.

  A gradient compiles in two thirds of the time and runs twice as long. The
  programs of a module end with it, since others must not meet them.
  """
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)
  jax.clear_caches()


@pytest.fixture(scope="module")
def quickest_compiler(quick_compiler):
  """`compiled.SOONEST`, which rounds otherwise than `quick_compiler`."""
  # A private name: where it is gone, only these tests break.
  from jax._src import compiler

  from tests.support import compiled

  given = compiler.get_compile_options

  def options(*args, **more):
    own = compiled.SOONEST | (more.pop("env_options_overrides", None) or {})
    return given(*args, env_options_overrides=own, **more)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(compiler, "get_compile_options", options)
    yield


@pytest.fixture(scope="module")
def scripts_in_turn():
  """Runs the launch scripts of a module in one process; see `in_turn`."""
  from tests.support import in_turn

  with in_turn.process() as run:
    yield run


# A worker meets a hundred modules, and programs are never given back by
# themselves: one that held 8 GiB was seen to abort while it stored a program.
_HELD_GIB = 3


@pytest.fixture(scope="module", autouse=True)
def programs_given_back():
  """Frees the compiled programs of modules that have left many."""
  yield
  file = pathlib.Path("/proc/self/statm")
  if file.exists():
    pages = int(file.read_text().split()[1])
    if pages * os.sysconf("SC_PAGE_SIZE") > _HELD_GIB * 2**30:
      jax.clear_caches()
      gc.collect()


def pytest_collection_finish():
  # What is imported by now stays: the collector need not look at it again, nor
  # so often at what tracing leaves: 10 s of 68 in a test of full-size programs.
  gc.freeze()
  gc.set_threshold(10_000, 20, 20)


# Slowest first, as measured: a worker that meets one of these last ends alone.
LONGEST = (
  "full_size_test.py",
  "launch/scripts_test.py",
  "contracts/erasures_test.py",
  "launch/resurgence_launch_test.py",
  "finetune/full_size_test.py",
  "documents_test.py",
  "contracts/attacks_test.py",
  "notebook_test.py",
  "finetune/model_test.py",
  "launch/finetune_processes_test.py",
  "launch/attack_launch_test.py",
  "colab_test.py",
  "launch/attack_processes_test.py",
  "benchmarks_test.py",
  "launch/processes_test.py",
  "guidance_test.py",
  "launch/audit_test.py",
  "launch/erase_resume_test.py",
  "attacks/gcg_test.py",
  "convert/full_size_test.py",
  "attacks/concept_inversion_test.py",
  "erasures/mace_train_test.py",
  "experiments/audit/run_test.py",
  "experiments/attack/run_test.py",
  "attacks/full_size_test.py",
  "attacks/unet_calls_test.py",
  "launch/attack_bad_input_test.py",
  "packaging_test.py",
  "finetune/defenses_test.py",
  "attacks/parity_test.py",
  "stable_diffusion_test.py",
  "finetune/packed_test.py",
  "models/parity_test.py",
  "erasures/concept_ablation_test.py",
  "judges/clip_test.py",
  "experiments/finetune/run_test.py",
  "experiments/resurgence/given_test.py",
  "stable_diffusion_parity_test.py",
  "launch/finetune_resume_test.py",
  "erasures/esd_presets_test.py",
  "models/fast_test.py",
)


def pytest_collection_modifyitems(items):
  ranks = {name: rank for rank, name in enumerate(LONGEST)}
  items.sort(key=lambda item: ranks.get(_name(item), len(ranks)))


def _name(item):
  return item.path.relative_to(ROOT / "tests").as_posix()
