"""Measures the image quality of a folder: FID, KID, LPIPS, CLIP score.

  python -m launch.measure --images=pictures --workdir=runs/quality \
    --metrics=fid~reference=photographs,kid~reference=photographs,clip-score
  python -m launch.measure --images=erased --base=original \
    --metrics=fid-to-base,lpips --workdir=runs/damage
  python -m launch.measure --images=photographs --statistics=clean \
    --workdir=runs/photographs

The last writes runs/photographs/statistics.npz, a `reference` for later runs.
`--list` says which metrics are ready on this machine, and what the others lack.
"""

from absl.flags import DEFINE_string

from . import flags

_WORKDIR = flags.workdir()
_IMAGES = DEFINE_string("images", None, "A folder of images.", required=True)
_BASE = DEFINE_string("base", "", "The base's images, under the same names.")
_CAPTIONS = DEFINE_string("captions", "", "A CSV of file_name and text.")
_STATISTICS = DEFINE_string("statistics", "", "A stack to write statistics of.")
_METRICS = flags.metrics("The metrics, with their options.")


def main(_: list[str]):
  """Builds the settings and measures."""
  import dataclasses

  from unlearning_jax.experiments import common, measure

  given = measure.Settings(
    images=_IMAGES.value,
    metrics=tuple(_METRICS.value),
    base=_BASE.value,
    captions=_CAPTIONS.value,
    statistics=_STATISTICS.value,
  )
  config = dataclasses.asdict(given)
  record = common.workdir(_WORKDIR.value, config, measure.Settings, alone=True)
  print(measure.text(measure.run(given, record)))


def listed() -> list[str]:
  """The metrics: ready, or what they lack."""
  from unlearning_jax import metrics
  from unlearning_jax.judges import weights

  known = metrics.reading("measure")
  return weights.listing({name: metrics.module(name) for name in known})


if __name__ == "__main__":
  flags.run(main, listed)
