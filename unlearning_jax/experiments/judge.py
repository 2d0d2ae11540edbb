"""Judge: a folder of images, or a run's stored scores by another threshold.

What a judge found stands in every row, so that a threshold is applied again
without an image. Files that would reach judges in different ways (transparent,
16-bit, broken) are left out, by name and with the reason.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unlearning_jax import judges, metrics, sharding
from unlearning_jax.judges import Judge, folders
from unlearning_jax.model import finished
from unlearning_jax.record import Recorder, read_rows
from unlearning_jax.settings import Output

_BATCH = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Who judges what.

  Attributes:
    judge: a judge's name, with its options.
    images: a folder of images, and of folders of them.
  """

  judge: Output[str]
  images: Output[str]

  def __post_init__(self):
    judges.load(self.judge)
    folders.check("images", self.images)


def run(settings: Settings, recorder: Recorder) -> dict[str, Any]:
  """Judges every image that is not judged yet, a row each.

  Args:
    settings: who judges what.
    recorder: keeps it; a record that was begun is gone on with.

  Returns:
    The summary; see `summary`.

  Raises:
    ValueError: the record is of another judge.
  """
  judge = judges.load(settings.judge)
  recorder.record_provenance(
    devices=sharding.describe_devices(),
    judge_hashes={judge.name: judge.identity},
  )
  listed, done = folders.files(settings.images), recorder.done_ids()
  left = [name for name in listed if name not in done]
  with recorder.progress("judge", len(listed), done=len(done)) as bar:
    for names, read in folders.batches([settings.images], left, _BATCH):
      images = read if isinstance(read, str) else read[0]
      for row in _scored(judge, names, images):
        recorder.append_row(row)
        bar.update()
  found = summary(judge, recorder.rows())
  recorder.save_summary(found)
  recorder.mark_done()
  return found


def again(folder: str, threshold: float) -> dict[str, Any]:
  """A finished run's numbers by another threshold, from its stored scores.

  Args:
    folder: of an evaluation, or of judged images.
    threshold: for every label that has one.

  Raises:
    ValueError: it is not such a run, its judge is not the one of its rows, or
      the judge has no thresholds.
  """
  config = finished(folder)
  if not config.get("judge"):
    raise ValueError(f"{folder}: nobody judged this run")
  judge = judges.load(config["judge"])
  if not judge.thresholds:
    raise ValueError(
      f"judge {judge.name} has no thresholds: it takes the likeliest label"
    )
  strict = dict.fromkeys(judge.thresholds, threshold)
  rows = [row for row in read_rows(folder) if "refused" not in row]
  if any("scores" not in row for row in rows):
    raise ValueError(f"{folder}: its rows have no scores; draw them again")
  changed = dataclasses.replace(judge, thresholds=strict)
  return summary(changed, rows)


def summary(judge: Judge, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """What a judge sees in rows, by what they were drawn by.

  Args:
    judge: decides.
    rows: with `scores`, or the reason why they are `refused`.

  Returns:
    `judge`, its name and identity; `estimates`, the share of images that show
    each label; `counts`, in the units of papers; `refused`, files and reasons.
  """
  seen = [row for row in rows if "refused" not in row]
  decided = [
    {
      "id": row["id"],
      "model": row.get("model", "all"),
      "group": row.get("group", "images"),
      "judged": one,
      "raw": row.get("raw"),
    }
    for row, one in zip(seen, _decided(judge, seen), strict=True)
  ]
  by_model: dict[str, list[Any]] = {}
  for row in decided:
    by_model.setdefault(row["model"], []).append(row["raw"])
  measured = metrics.load("seen").measure(decided) if decided else []
  counted = {
    model: dict(judge.count(raw, judge.thresholds))
    for model, raw in by_model.items()
    if None not in raw
  }
  return {
    "judge": {"name": judge.name, "identity": judge.identity},
    "estimates": [one.plain() for one in measured],
    "counts": counted,
    "refused": {r["id"]: r["refused"] for r in rows if "refused" in r},
  }


def text(found: Mapping[str, Any]) -> str:
  """A summary for a terminal."""
  lines = [f"{found['judge']['name']}"]
  for one in found["estimates"]:
    name = one["name"].removeprefix("seen ")
    if name.endswith("/all"):
      lines.append(
        f"  {one['model']:8} {name.removesuffix('/all'):40} {one['k']} of "
        f"{one['n']} [{one['low']:.2f}, {one['high']:.2f}]"
      )
  for model, counted in found["counts"].items():
    lines += [f"  {model:8} {unit:40} {k}" for unit, k in counted.items()]
  refused = found["refused"]
  if refused:
    lines.append(f"  left out: {len(refused)}")
    lines += [f"    {reason}" for reason in refused.values()]
  return "\n".join(lines)


def _decided(
  judge: Judge, rows: Sequence[Mapping[str, Any]]
) -> list[dict[str, str]]:
  if not rows:
    return []
  heads = {head: [*row] for head, row in rows[0]["scores"].items()}
  shapes = {head: len(values) for head, values in heads.items()}
  if shapes != {head: len(names) for head, names in judge.labels.items()}:
    raise ValueError(
      f"judge {judge.name}: the rows have scores of {shapes}, of another judge"
    )
  return judge.decide(
    {head: np.array([row["scores"][head] for row in rows]) for head in heads}
  )


def _scored(
  judge: Judge, names: Sequence[str], images: np.ndarray | str
) -> list[dict[str, Any]]:
  """A row for each image; or for the one that is refused."""
  if isinstance(images, str):
    return [{"id": names[0], "refused": images}]
  rows: list[dict[str, Any]] = [{"id": name} for name in names]
  scores = judge(images)
  for i, (row, seen) in enumerate(zip(rows, judge.decide(scores), strict=True)):
    row["judged"] = seen
    row["scores"] = {head: s[i].tolist() for head, s in scores.items()}
    if scores.raw:
      row["raw"] = scores.raw[i]
  return rows
