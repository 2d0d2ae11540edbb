"""A verb whose runs take milliseconds, and a worker of a sweep of it.

  python -m tests.support.toy_sweep FOLDER COUNT PAUSE

runs COUNT cells, each of three rows PAUSE seconds apart.
"""

import dataclasses
import os
import pathlib
import sys
import time

from unlearning_jax.experiments import sweep
from unlearning_jax.experiments.sweep import verbs
from unlearning_jax.record import leases
from unlearning_jax.settings import Free, Output

ROWS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  x: Output[int]
  scale: Output[float] = 1.0
  name: Output[str] = ""
  deep: Output[bool | None] = None
  hparams: Output[dict] = dataclasses.field(default_factory=dict)
  seed: Output[int] = 0
  pause: Free[float] = 0.0
  lanes: Free[int] = 1

  def __post_init__(self):
    if self.x < 0:
      raise ValueError(f"x={self.x}: must not be negative")


def run(given, opened, edit):
  record = opened()
  done = record.done_ids()
  # All starts of all workers, for tests to count.
  log = record.path.parents[1] / "starts.log"
  with log.open("a") as file:
    file.write(f"{record.path.name} {os.getpid()} {len(done)}\n")
  for i in range(ROWS):
    if i not in done:
      time.sleep(given.pause)
      record.append_row({"id": i, "y": given.x * given.scale + i})
  if given.name == "bad":
    raise ValueError("nothing\ncomes of it")
  share = 1 / (1 + given.x)
  measure = {"name": "object/star/explicit", "value": share}
  kept = {"name": "object/all/others", "value": share}
  ends = {"low": 0.0, "high": 1.0, "k": 1, "n": 1 + given.x}
  record.save_summary(
    {
      "models": ["base", "TOY"],
      "erased": [{"head": "object", "class": "star"}],
      "measures": {"base": [], "TOY": [measure | ends, kept | ends]},
    }
  )
  record.mark_done()


def install(patch):
  """Adds the verb `toy` until the test ends."""
  patch.setitem(verbs.VERBS, "toy", verbs.Verb(Settings, run))


def base(**values):
  """The settings of a config without options."""

  def make(options):
    if options:
      raise ValueError(f"config argument={next(iter(options))!r} is not known")
    return {"x": 0, **values}

  return sweep.Base(make)


def plan(count, pause=0.0):
  return sweep.plan(
    "toy", base(pause=pause), [("x", range(count))], texts=False
  )


def main():
  folder, count, pause = sys.argv[1:]
  verbs.VERBS["toy"] = verbs.Verb(Settings, run)

  def held(place):
    return leases.Leases(place, beat_s=0.2, dead_s=2.0)

  planned = plan(int(count), float(pause))
  sys.exit(3 * bool(sweep.run(planned, pathlib.Path(folder), held=held)))


if __name__ == "__main__":
  main()
