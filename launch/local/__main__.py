"""Runs a verb in several processes of this machine.

  python -m launch.local --processes=2 --devices=4 -- evaluate \
    --protocol=shapes-star --edits=runs/uce --workdir=runs/evaluation

The processes join each other, and the rows are those of one process. Each has
so many CPU devices, or GPUs of its own with `--platform=gpu`. Each appends to
`process-<i>.log` in `--logs`; the first is also shown. If one fails, all end.
Ctrl-C asks all to stop; the same command goes on then.
"""

import pathlib
import shlex

from absl.flags import DEFINE_bool, DEFINE_enum, DEFINE_integer, DEFINE_string

from .. import flags, places
from . import PLATFORMS, environments, run

_PROCESSES = DEFINE_integer("processes", 1, "How many.", lower_bound=1)
_DEVICES = DEFINE_integer("devices", 1, "Devices of each.", lower_bound=1)
_PLATFORM = DEFINE_enum("platform", "cpu", PLATFORMS, "What devices are.")
_LOGS = DEFINE_string("logs", "logs", "The folder of the logs.")
_DRY_RUN = DEFINE_bool("dry_run", False, "Print the commands only.")


def main(argv: list[str]) -> int:
  """Starts the processes and waits for them."""
  count = _PROCESSES.value
  command = places.command(argv[1:], count)
  added = environments(count, _DEVICES.value, _PLATFORM.value)
  if _DRY_RUN.value:
    for one in added:
      print(*(f"{k}={v}" for k, v in one.items()), shlex.join(command))
    return 0
  return run(command, added, pathlib.Path(_LOGS.value))


if __name__ == "__main__":
  flags.run(main, names=True)
