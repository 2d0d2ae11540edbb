"""Sweeps from Python: one verb over a grid of settings, in one table."""

import dataclasses
import importlib
import os
import pathlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from unlearning_jax.api.results import Table
from unlearning_jax.api.runs import Path, page
from unlearning_jax.experiments import sweep as experiment

_CONFIG = "unlearning_jax.configs.sweep"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Sweep(Table):
  """A finished sweep: a line and a row for each cell, and the page.

  Attributes:
    path: the folder; each cell is a run in `cells/<id>`, for `ul.open`.
  """

  path: pathlib.Path = pathlib.Path()
  # A temporary folder goes with the result.
  _kept: tempfile.TemporaryDirectory[str] | None = None


def sweep(
  verb: str,
  config: str | Mapping[str, Any],
  grid: Mapping[str, Iterable[Any]],
  *,
  seeds: int = 1,
  protocol: str = "",
  retry: bool = False,
  track: Sequence[str] = (),
  pack: int = 1,
  out: Path | None = None,
) -> Sweep:
  """Runs a verb once for every combination of settings.

  Where `ul.grid` draws prompts and seeds with models, this runs whole
  experiments. A cell that fails leaves its error, and the others go on. The
  same call goes on with a sweep that was stopped.

  Args:
    verb: erase, attack, finetune, evaluate or audit.
    config: a shipped config with its options, as `erase_rece:tiny`; or the
      settings themselves, as `ul.open(folder).config` has them; "" where a
      protocol says all.
    grid: key -> values. A key is a setting, as `hparams.erase_scale`; an option
      of the config, as `concept` or `method`; or `edit`, the folders of
      erasures.
    seeds: runs of each combination, with seeds that count up.
    protocol: of an evaluation or an audit, as `shapes-star`.
    retry: runs the cells that failed, and no others.
    track: also tells "tensorboard" or "wandb" of every cell, see the `tracking`
      extra.
    pack: erasures of one method that train in one program, where they differ
      in concept or seed; for GPUs and TPUs.
    out: a folder that keeps the sweep, which other workers may share; None
      keeps it for as long as the result exists.

  Raises:
    ValueError: a verb, key or value that cannot be used, before anything runs;
      or the folder holds another sweep.
  """
  base = _base(verb, config, protocol)
  for key, values in grid.items():
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
      raise ValueError(
        f"sweep: grid[{key!r}]={values!r}: must be a list; [{values!r}]"
      )
  axes = [(key, [*values]) for key, values in grid.items()]
  planned = experiment.plan(verb, base, axes, seeds=seeds)
  kept = (
    tempfile.TemporaryDirectory(prefix="unlearning_jax-") if not out else None
  )
  root = pathlib.Path(kept.name if kept else os.fspath(out or ""))
  experiment.run(planned, root, retry=retry, track=track, pack=pack)
  document = experiment.written(root)
  head, *lines = experiment.lines(document)
  return Sweep(
    document["title"],
    tuple(head),
    tuple(map(tuple, lines)),
    tuple(_row(cell) for cell in document["cells"]),
    document,
    page(root),
    path=root,
    _kept=kept,
  )


def _base(
  verb: str, config: str | Mapping[str, Any], protocol: str
) -> experiment.Base:
  if isinstance(config, str):
    module = importlib.import_module(_CONFIG)
    return module.base(verb, config, protocol=protocol)
  values = dict(config)

  def make(options: Mapping[str, Any]) -> dict[str, Any]:
    for key in options:
      raise ValueError(
        f"{key} is no setting; options such as concept need the name of a "
        "config, as 'erase_rece:tiny'"
      )
    return values

  # They only name what the settings were made of.
  return experiment.Base(make, frozenset(("protocol", "preset")))


def _row(cell: Mapping[str, Any]) -> dict[str, Any]:
  """A cell as one flat mapping."""
  figures = {name: one["value"] for name, one in cell["figures"].items()}
  kept = {key: cell[key] for key in ("id", "state", "error")}
  return kept | cell["values"] | figures
