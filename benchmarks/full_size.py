"""Times the programs of Stable Diffusion 1.4's size, with random weights.

  python benchmarks/full_size.py --out=benchmarks/results/x.json

Parts: `unet`, a forward pass; `attack`, a step of UnlearnDiffAtk; `full` and
`lora`, a step of `launch.finetune` that takes its batch in one; `sample`, 50
guided steps and the VAE. A program is compiled ahead, its inputs lie on the
device, and the median of its calls is told, each waited for. Work is counted
by `cost_analysis` of one row's program with dense attention and nothing
rematerialized, so that what is computed twice is no work; a share of the
ceiling is of what a large matmul in the same dtype does.

On a GPU set XLA_PYTHON_CLIENT_MEM_FRACTION=0.95, and leave the CPU among
JAX_PLATFORMS: work is counted there. With JAX_COMPILATION_CACHE_DIR set,
`--compile_only --jobs=8` compiles beforehand.
"""

import concurrent.futures
import contextlib
import datetime
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import app, flags, logging
from unlearning_jax.configs import finetune_full, finetune_lora

from unlearning_jax import attacks, durable, settings, sharding
from unlearning_jax.experiments import finetune as tuning
from unlearning_jax.experiments.programs import build as programs

GIB = 2**30
ROWS = {
  "unet": (1, 4, 8, 16, 32),
  "attack": (1, 4, 8, 16, 32),
  "full": (1, 4, 8, 16),
  "lora": (1, 4, 8, 16),
  "sample": (1, 4, 8),
}
TUNED = {"full": finetune_full, "lora": finetune_lora}
PARTS = flags.DEFINE_list("parts", list(ROWS), "What is measured.")
BATCHES = flags.DEFINE_list("rows", None, "Rows, instead of each part's own.")
ATTENTION = flags.DEFINE_list("attention", ["auto"], "Each is measured.")
SIZE = flags.DEFINE_enum("size", "sd14", ["sd14", "tiny"], "Of the networks.")
DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "")
REMAT = flags.DEFINE_bool("remat", True, "When tuning, as its configs do.")
COMPILE = flags.DEFINE_bool("compile_only", False, "Fill the compiler's cache.")
JOBS = flags.DEFINE_integer("jobs", 1, "Compiled at once, if nothing is timed.")
SECONDS = flags.DEFINE_float("seconds", 2.0, "How long each is repeated.")
OUT = flags.DEFINE_string("out", None, "Where the JSON record goes.")


def repeat(
  call: Callable[..., Any], given: tuple[Any, ...], carries: bool
) -> list[float]:
  """Seconds of calls after the first, one at least."""
  seconds: list[float] = []
  while len(seconds) < 2 or sum(seconds[1:]) < SECONDS.value:
    start = time.perf_counter()
    out = jax.block_until_ready(call(*given))
    seconds.append(time.perf_counter() - start)
    if carries:
      given = (out[0], *given[1:])
  return seconds[1:]


def ceiling() -> dict[str, float]:
  """TFLOP/s of eight matmuls in a row, of random numbers."""
  large = SIZE.value == "sd14" and jax.default_backend() != "cpu"
  n = 8192 if large else 512
  a, b = (programs.normal(i, (n, n)).astype(DTYPE.value) for i in range(2))
  b = b / n**0.5
  chain = jax.jit(lambda a, b: jax.lax.fori_loop(0, 8, lambda _, x: x @ b, a))
  best = statistics.median(repeat(chain, (a, b), False))
  return {"matmul": n, "tflop_s": 8 * 2 * n**3 / best / 1e12}


def how(part: str) -> Any:
  """What says how a part computes: one step, its batch in one."""
  if part == "attack":
    return attacks.bind("unlearn_diff_atk", {"num_tokens": 5, "iterations": 1})
  if part not in TUNED:
    return None
  config = TUNED[part].get_config("sd14")
  config.accumulate, config.remat = 1, REMAT.value
  return settings.build(tuning.Settings, config.to_dict())


def memory(compiled: Any) -> dict[str, float | None]:
  """GiB of the program as planned, and the most that this process has had."""
  planned, stats = compiled.memory_analysis(), jax.devices()[0].memory_stats()
  parts = ("argument", "temp", "output", "alias")
  sizes = {
    part: getattr(planned, f"{part}_size_in_bytes") / GIB for part in parts
  }
  total = sum(sizes.values()) - 2 * sizes["alias"]
  peak = (stats or {}).get("peak_bytes_in_use")
  return {**sizes, "total": total, "peak_so_far": peak and peak / GIB}


class Record:
  """What is measured so far; written whole after every program."""

  def __init__(self):
    self.document: dict[str, Any] = {
      "what": (__doc__ or "").splitlines()[0],
      "date": datetime.date.today().isoformat(),
      "device": sharding.describe_devices(),
      "versions": {"jax": jax.__version__, "python": platform.python_version()},
      "flags": {
        flag.name: flag.value
        for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])
      },
      "environment": {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("XLA_", "JAX_"))
      },
      "measured": [],
    }

  @contextlib.contextmanager
  def of(self, **about: Any):
    """One measurement; what goes wrong is recorded, and the next one begins."""
    start = time.perf_counter()
    try:
      yield about
    except Exception as error:
      about["error"] = f"{type(error).__name__}: {error}"[:200]
    about["wall_s"] = time.perf_counter() - start
    about = json.loads(
      json.dumps(about), parse_float=lambda x: float(f"{float(x):.5g}")
    )
    print(json.dumps(about), flush=True)
    self.document["measured"].append(about)
    if OUT.value:
      with durable.replacing(pathlib.Path(OUT.value)) as file:
        file.write(json.dumps(self.document, indent=2).encode() + b"\n")


def main(_: list[str]):
  """Compiles and times each program; prints, and writes after each if asked."""
  # Of every program optax says what its schedule is.
  logging.set_verbosity(logging.WARNING)
  record, like = (
    Record(),
    programs.shapes(programs.make_sd(SIZE.value, DTYPE.value, "dense")),
  )
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  params, top = None, float("nan")
  if not COMPILE.value:
    with record.of(part="ceiling") as about:
      about.update(ceiling())
    top = about.get("tflop_s", float("nan"))
    params = jax.block_until_ready(programs.weights(like))

  def measure(what: tuple[str, str, int]):
    part, attention, rows = what
    with record.of(part=part, attention=attention, rows=rows) as about:
      sd = programs.make_sd(SIZE.value, DTYPE.value, attention)
      program = programs.BUILD[part](sd, rows, like, how(part))
      times = [time.perf_counter()]
      low = programs.lowered(program, like, mesh)
      times.append(time.perf_counter())
      compiled = low.compile()
      about["lower_s"] = times[1] - times[0]
      about["compile_s"] = time.perf_counter() - times[1]
      about["gib"] = memory(compiled)
      if COMPILE.value:
        return
      given = jax.device_put(
        program.arguments(params), sharding.replicated(mesh)
      )
      seconds = repeat(compiled, given, program.carries)
      median = statistics.median(seconds)
      about["calls"], about["fastest_s"] = len(seconds), min(seconds)
      about["seconds"], about["rows_s"] = median, rows / median
      about["gib"] = memory(compiled)
      flops = programs.flops(part, SIZE.value, DTYPE.value, how(part))
      about["tflop"] = rows * flops / 1e12
      about["tflop_s"] = about["tflop"] / median
      about["of_ceiling"] = about["tflop_s"] / top

  work = [
    (part, attention, int(rows))
    for attention in ATTENTION.value
    for part in PARTS.value
    for rows in BATCHES.value or ROWS[part]
  ]
  with concurrent.futures.ThreadPoolExecutor(
    JOBS.value if COMPILE.value else 1
  ) as pool:
    list(pool.map(measure, work))


if __name__ == "__main__":
  app.run(main)
