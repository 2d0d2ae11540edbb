"""Compiles the full-size programs for devices that need not be there.

  python -m launch.programs --places=v5e,cpu:8 --programs=attack --rows=1,4 \
    --out=programs.json

No weights are read, and nothing runs. Memory, work and collectives of a chip
are added to `--out`, row by row; a row that is there is not compiled again. TPU
programs need libtpu, and take minutes each. `--list` prints the record that
comes with the package, which `--check` reads.
"""

import os
import pathlib
from importlib import import_module

from absl import logging
from absl.flags import DEFINE_bool, DEFINE_enum, DEFINE_list, DEFINE_string

from . import flags

_ASKED = {
  "programs": DEFINE_list("programs", ["attack", "sample"], "See --list."),
  "places": DEFINE_list("places", ["cpu:1"], "cpu:N, or v5e, v5p, v6e."),
  "rows": DEFINE_list("rows", ["1"], "Rows a chip."),
  "dtypes": DEFINE_list("dtypes", ["f32"], "f32, bf16."),
  "size": DEFINE_enum("size", "sd14", ["sd14", "tiny"], "Of the networks."),
  "effort": DEFINE_enum("effort", "low", ["low", "default"], "Compiler's."),
  "again": DEFINE_bool("again", False, "Compile recorded rows too."),
}
_OUT = DEFINE_string("out", "programs.json", "The record.")


def main(_):
  """Builds the settings, compiles, prints a line a program."""
  os.environ.setdefault("JAX_NUM_CPU_DEVICES", "16")
  from unlearning_jax.experiments import finetune, programs

  asked = {name: flag.value for name, flag in _ASKED.items()}
  asked["rows"] = [*map(int, asked["rows"])]
  given = flags.settings(programs.Settings, asked)
  tuned = {}
  for name in ("full", "lora"):
    one = import_module(f"unlearning_jax.configs.finetune_{name}")
    tuned[name] = flags.settings(finetune.Settings, one.get_config("sd14"))
  # Of every program optax says what its schedule is.
  logging.set_verbosity(logging.WARNING)
  path = pathlib.Path(_OUT.value)
  print(programs.table([*programs.run(given, path, tuned)]))


def listed() -> list[str]:
  """The programs, and the record that comes with the package."""
  from unlearning_jax.experiments import programs

  return programs.listed()


if __name__ == "__main__":
  flags.run(main, listed)
