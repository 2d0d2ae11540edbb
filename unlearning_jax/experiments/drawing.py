"""The rows of an evaluation: listed, drawn and judged."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from unlearning_jax import casting, judges, processes, sampling, sharding
from unlearning_jax.experiments import common
from unlearning_jax.judges import Judge
from unlearning_jax.metrics.accuracy import judge_rows
from unlearning_jax.model import Model
from unlearning_jax.protocols import Prompts
from unlearning_jax.record import Recorder
from unlearning_jax.settings import Free, Output

Rows = list[dict[str, Any]]
# Between a prompt's seeds: more than there are rows.
_APART = 50_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(common.Drawn):
  """What every model draws.

  Attributes:
    prompts: group -> prompts of your own, for a model that no world knows. The
      group's name says what they ask for: `others` for nothing that is looked
      for, a target's label for that target, any other name for the first one.
    rows_per_group: prompts of a world for each target and group.
    other_rows: prompts of a world that ask for no target.
    seeds: images of each prompt, each from a noise of its own.
    protocol: name and hash of the protocol with these settings; "" for none.
    published: the prompts of a published protocol; None for none.
    columns: numbers of its published table, see `columns`.
    missing: metrics of the protocol that cannot be computed here, and why.
  """

  prompts: Output[Mapping[str, tuple[str, ...]]] = dataclasses.field(
    default_factory=dict
  )
  rows_per_group: Output[int] = 0
  other_rows: Output[int] = 0
  seeds: Output[int] = 1
  protocol: Output[str] = ""
  published: Prompts | None = None
  columns: Output[tuple[str, ...]] = ()
  missing: Free[Mapping[str, str]] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    super().__post_init__()
    for key in ("rows_per_group", "other_rows"):
      if getattr(self, key) < 0:
        raise ValueError(f"{key}={getattr(self, key)}: must not be negative")
    if self.seeds < 1:
      raise ValueError(f"seeds={self.seeds}: must be at least 1")
    if self.seeds > 1 and self.published is not None:
      raise ValueError(
        f"seeds={self.seeds}: a published protocol's seeds are its own; seeds=1"
      )
    if self.draws:
      self._check_rows()

  @property
  def draws(self) -> bool:
    """Whether anything is drawn at all."""
    return True

  def _check_rows(self):
    """Refuses settings without rows, and rows that the judge cannot see."""
    asked = any(self.prompts.values()) or self.published is not None
    if self.judge is None and not asked:
      raise ValueError("prompts: the config has neither a judge nor prompts")
    if common.world_of(self) is None and not asked:
      raise ValueError(
        f"prompts: model={self.model!r} is no embedded world, whose prompts "
        "are known; give some"
      )
    common.check_metrics(self, "evaluate")
    common.check_sees(common.load_judge(self), common.targets_of(self))


def rows(settings: Settings) -> Rows:
  """The rows to draw, each as often as `seeds` says; none if nothing is drawn.

  A row's first image is that of one seed. The others' ids end with -s1, -s2.
  """
  if not settings.draws:
    return []
  return [
    row
    if not i
    else {
      **row,
      "id": f"{row['id']}-s{i}",
      "seed": (row["seed"] + i * _APART) % 2**32,
      "repeat": i,
    }
    for row in _once(settings)
    for i in range(settings.seeds)
  ]


def _once(settings: Settings) -> Rows:
  """A protocol's prompts, your own, or those of a world.

  A judge that is not the world's own keeps the attributes it has a head for.
  """
  if settings.published is not None:
    targets, judge = common.targets_of(settings), common.load_judge(settings)
    return settings.published.listed(targets, judge)
  world, own = common.world_of(settings), any(settings.prompts.values())
  foreign = world is not None and settings.judge != world.NAME
  if settings.judge is None or world is None or (foreign and own):
    return _own_rows(settings)
  drawn = world.prompt_rows(
    settings.world_targets,
    settings.rows_per_group, settings.other_rows, settings.seed,
  )  # fmt: skip
  if foreign:
    heads = judges.load(settings.judge).labels
    for row in drawn:
      asked = row["attributes"].items()
      row["attributes"] = {h: label for h, label in asked if h in heads}
  return drawn


def _own_rows(settings: Settings) -> Rows:
  targets = common.targets_of(settings) if settings.judge else []
  pairs = [
    (group, prompt)
    for group, prompts in settings.prompts.items()
    for prompt in prompts
  ]
  found = []
  for i, (group, prompt) in enumerate(pairs):
    asked = [t for t in targets if t.label == group] or targets[:1]
    if group == "others":
      asked = []
    found.append(
      {
        "id": f"{i:05d}-{group}",
        "group": group,
        "prompt": prompt,
        "seed": settings.seed + i,
        "attributes": {t.head: t.label for t in asked},
        "unsafe": False,
      }
    )
  return found


def every(
  recorder: Recorder,
  settings: Settings,
  models: Mapping[str, Model],
  table: Rows,
  key: Callable[[str], str] = str,
) -> Iterator[tuple[str, Rows, UInt8[np.ndarray, "n h w 3"]]]:
  """Draws and judges under every model the rows that are not recorded yet.

  The caller records each row under the id `<key of the model>/<id>`. While the
  judge and the caller look at a batch, the device draws the next one, of the
  next model too.

  Args:
    recorder: the record, which also shows the progress.
    settings: what is drawn, and who judges it.
    models: the models by name.
    table: the rows, without a model's key in their ids.
    key: maps a model's name to its key.

  Yields:
    A model's name, some of this process's rows as judged, and their images.
  """
  judge, done = common.load_judge(settings), recorder.done_ids()
  # All processes share one list: none records a row before all have read it.
  processes.wait_for_all("rows listed")
  total = len(table) * len(models)
  with recorder.progress("draw", total, done=len(done)) as bar:
    for name, part, images in sampling.ahead(
      (name, *batch)
      for name, model in models.items()
      for batch in _started(
        settings,
        model,
        [row for row in table if f"{key(name)}/{row['id']}" not in done],
      )
    ):
      drawn = images()[: len(part)]
      # No row is left where another process alone has rows in this batch.
      if part:
        yield name, _judged(judge, part, drawn), drawn
        bar.update(len(part))
  processes.wait_for_all("rows drawn")


def _started(
  settings: Settings, model: Model, left: Rows
) -> Iterator[tuple[Rows, Callable[[], sampling.Images]]]:
  """Starts to draw this process's rows; yields a batch's rows and images.

  Every process has the same number of batches, or they would wait for each
  other. So a batch's images may be more than its rows, which may be none.
  """
  mesh = sharding.make_mesh()
  multiple = sharding.local_rows_multiple(mesh)
  # The next size that the devices share evenly.
  size = -(-settings.batch_size // multiple) * multiple
  params = casting.placed(model.sd, model.drawn_params, mesh)
  every = [request(row) for row in left]
  for group in sampling.alike(every, settings.sampling.guidance_scale):
    mine, padding = _share([left[i] for i in group])
    batches = sampling.start(
      model.sd,
      params,
      [request(row) for row in mine],
      settings.sampling,
      batch_size=size,
      place=functools.partial(sharding.global_batch, mesh),
      fetch=sharding.local_rows,
      **model.drawing,
    )
    mine = mine[: len(mine) - padding]
    for i, images in enumerate(batches):
      yield mine[i * size : (i + 1) * size], images


def request(row: Mapping[str, Any]) -> sampling.Request:
  """What to draw for a row; a published one may say more than its seed."""
  keys = ("guidance", "size", "sample", "truncate")
  more = {key: row[key] for key in keys if row.get(key) is not None}
  return sampling.Request(row["prompt"], row["seed"], **more)


def _judged(judge: Judge | None, part: Rows, images: sampling.Images) -> Rows:
  """Copies of rows with what the judge saw, its scores beside it."""
  rows = [dict(row) for row in part]
  if judge is None:
    return rows
  scores = judge(images)
  rows = judge_rows(rows, scores, judge)
  for i, row in enumerate(rows):
    row["scores"] = {head: s[i].tolist() for head, s in scores.items()}
    if scores.raw:
      row["raw"] = scores.raw[i]
  return rows


def _share(left: Sequence[dict]) -> tuple[list[dict], int]:
  """This process's rows, and the number of padding rows at their end.

  Every process gets the same number, or they would wait for each other.
  """
  count = -(-len(left) // jax.process_count())
  mine = list(left[jax.process_index() * count :][:count])
  padding = count - len(mine)
  return mine + list(left[:1]) * padding, padding
