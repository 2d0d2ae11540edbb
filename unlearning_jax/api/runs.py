"""Opens the records of runs, and finished runs again."""

import dataclasses
import functools
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from unlearning_jax import durable, renamed
from unlearning_jax import model as models
from unlearning_jax import settings as settings_
from unlearning_jax.api.results import Table, pivot
from unlearning_jax.durable import to_json
from unlearning_jax.experiments import common
from unlearning_jax.model import Model
from unlearning_jax.record import Memory, Recorder, read_rows
from unlearning_jax.report import leaderboard as leaderboard_

Path = str | os.PathLike[str]


def opener(out: Path | None, given: Any) -> Callable[[], Recorder]:
  """Returns a function that opens the record of a run, once.

  Args:
    out: the folder of the record; None keeps it in memory.
    given: the settings of the run.
  """
  if out is None:
    return functools.cache(Memory)
  if not isinstance(out, str | os.PathLike):
    raise ValueError(f"out={out!r}: give a folder, or None for memory")
  folder = os.fspath(out)
  return functools.cache(
    lambda: common.workdir(folder, plain(given), type(given))
  )


def plain(given: Any) -> dict[str, Any]:
  """Settings in the form of a run's `config.json`."""
  return json.loads(to_json(settings_.plain(given), "settings"))


def leaderboard(runs: Sequence[Path]) -> Table:
  """Finished evaluations of one protocol in one table, a column a model.

  Args:
    runs: folders, as `out` or `--workdir` named them.

  Raises:
    ValueError: a run has not ended, or ran another protocol than the first.
  """
  if isinstance(runs, str | os.PathLike):
    raise ValueError(f"leaderboard: runs={runs!r}: must be a list; [{runs!r}]")
  protocol, lines = leaderboard_.lines(runs)
  numbers: dict[str, list[Any]] = {}
  for line in lines:
    several = sum(line["model"] == one["model"] for one in lines) > 1
    name = line["model"]
    name += f" ({pathlib.Path(line['run']).name})" if several else ""
    name += " (collapsed)" if line["collapsed"] else ""
    texts = leaderboard_.TEXTS
    numbers[name] = [one for key, one in line.items() if key not in texts]
  return pivot(protocol.partition(" ")[0], numbers, rows=tuple(lines))


def page(folder: pathlib.Path) -> str:
  """The page in a run's folder, HTML; "" where it has none."""
  file = folder / "report.html"
  return file.read_text(encoding="utf-8") if file.is_file() else ""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Run(Table):
  """A finished run, read from its folder.

  Attributes:
    path: the folder.
    config: the content of its `config.json`.
  """

  path: pathlib.Path = pathlib.Path()
  config: dict[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def model(self) -> Model:
    """The model that an erasure or tuning made, with its edit or guidance.

    Raises:
      ValueError: the run made neither.
    """
    return models.load(self.path)


def open(folder: Path) -> Run:
  """Opens a finished run: its rows, its summary, its page, its model.

  Args:
    folder: a script's `--workdir`, or a verb's `out`.

  Raises:
    ValueError: it is no run's folder, or the run has not ended.
  """
  path = pathlib.Path(folder)
  config = models.finished(path)
  with durable.explaining(path):
    return _read(path, config)


def _read(path: pathlib.Path, config: dict[str, Any]) -> Run:
  file = path / "summary.json"
  summary = durable.read_json(file) if file.exists() else {}
  summary = renamed.summary(summary)
  by_model = summary.get("measures", {})
  if not isinstance(by_model, dict):
    by_model = {summary.get("title", path.name): by_model}
  # Metrics stand in the columns where their verbs show them.
  for one in summary.get("estimates", ()):
    place = one.get("model") or "all"
    by_model[place] = [*by_model.get(place, ()), one]
  table = pivot(config.get("title") or path.name, by_model)
  if "verdicts" in summary:
    keys = ("victim", "title", "verdict", "reason")
    lines = tuple(tuple(v[key] for key in keys) for v in summary["verdicts"])
    names = ("victim", "question", "verdict", "why")
    table = Table(summary["title"], names, lines)
  for cell in itertools.chain([table.title], table.columns, *table.lines):
    if not isinstance(cell, str):
      raise ValueError(
        f"{path}: {str(cell)[:80]!r} stands where a title, a name or a reason "
        "must stand"
      )
  return Run(
    table.title,
    table.columns,
    table.lines,
    tuple(read_rows(path)),
    summary,
    page(path),
    path=path,
    config=config,
  )
