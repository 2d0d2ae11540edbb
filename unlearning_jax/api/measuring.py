"""Image quality of a folder of pictures."""

import os
from collections.abc import Sequence

from unlearning_jax.api.results import Table, pivot
from unlearning_jax.api.runs import Path, opener
from unlearning_jax.experiments import measure as experiment


def measure(
  images: Path,
  metrics: Sequence[str] = (),
  *,
  base: Path = "",
  captions: Path = "",
  statistics: str = "",
  out: Path | None = None,
) -> Table:
  """Measures pictures, whatever drew them: FID, KID, LPIPS, CLIP score.

  Args:
    images: a folder of pictures.
    metrics: names with their options, as `fid~reference=photographs`.
    base: the folder of the base's pictures, under the same names; "" for none.
    captions: a CSV of `file_name` and `text` beside the pictures; "" for the
      folder's own `metadata.jsonl` or `metadata.csv`.
    statistics: a stack, as t2i, of which `out` gets a `statistics.npz`.
    out: a folder that keeps the run; None keeps it in memory.

  Returns:
    The numbers; `rows` has each picture, and `summary` what was left out.

  Raises:
    ValueError: a folder, metric or option is unknown, a file of weights is
      missing, a reference does not fit, or no picture can be used.
  """
  if isinstance(metrics, str):
    raise ValueError(
      f"measure: metrics={metrics!r}: must be a list; metrics=[{metrics!r}]"
    )
  if statistics and out is None:
    raise ValueError("measure: statistics: give out=FOLDER, which gets them")
  given = experiment.Settings(
    images=os.fspath(images),
    metrics=tuple(metrics),
    base=os.fspath(base),
    captions=os.fspath(captions),
    statistics=statistics,
  )
  run = opener(out, given)()
  found = experiment.run(given, run)
  return pivot(
    f"{found['images']} pictures of {os.fspath(images)}",
    {"images": found["estimates"]},
    rows=tuple(run.rows()),
    summary=found,
  )
