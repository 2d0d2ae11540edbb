"""Judges a folder of images, or a run's stored scores by another threshold.

  python -m launch.judge --judge=nudenet --images=pictures --workdir=runs/seen
  python -m launch.judge --workdir=runs/seen --threshold=0.5

The second judges nothing anew: rows hold what the judge found. It also takes
the folder of an evaluation. `--list` says which judges are ready on this
machine, and what the others lack.
"""

from absl.flags import DEFINE_float, DEFINE_string

from . import flags

_WORKDIR = flags.workdir()
_JUDGE = DEFINE_string("judge", None, "A judge's name, with its options.")
_IMAGES = DEFINE_string("images", None, "A folder of images.")
_THRESHOLD = DEFINE_float("threshold", None, "Another threshold for a run.")


def main(_: list[str]):
  """Judges, or decides again."""
  import dataclasses

  from unlearning_jax.experiments import common, judge

  if _THRESHOLD.value is not None:
    if _JUDGE.value or _IMAGES.value:
      raise ValueError(
        "--threshold: takes a judged run, --workdir=RUN alone; for a new "
        "run it is an option of the judge: --judge=nudenet~threshold=0.5"
      )
    print(judge.text(judge.again(_WORKDIR.value, _THRESHOLD.value)))
    return
  if not (_JUDGE.value and _IMAGES.value):
    raise ValueError("--judge, --images: give both, or --threshold")
  given = judge.Settings(judge=_JUDGE.value, images=_IMAGES.value)
  config = dataclasses.asdict(given)
  record = common.workdir(_WORKDIR.value, config, judge.Settings, alone=True)
  print(judge.text(judge.run(given, record)))


def listed() -> list[str]:
  """The judges: ready, or what they lack."""
  from unlearning_jax import judges
  from unlearning_jax.judges import weights

  return weights.listing({name: judges.module(name) for name in judges.names()})


if __name__ == "__main__":
  flags.run(main, listed)
