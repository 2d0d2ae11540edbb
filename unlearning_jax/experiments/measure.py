"""Measure: image quality of a folder of pictures, whatever drew them.

Their distance to photographs (FID, KID), to the base's pictures of the same
prompts and seeds (fid-to-base, LPIPS), and to their captions (CLIP score). As
much memory for any number of pictures. Files that cannot be used are left out,
by name and with the reason; so is the pair of one.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unlearning_jax import data, metrics, sharding
from unlearning_jax.experiments.tallies import Tallies
from unlearning_jax.judges import folders
from unlearning_jax.metrics import Estimate, Metric, features, references
from unlearning_jax.metrics.features import Features
from unlearning_jax.metrics.references import BASE
from unlearning_jax.record import Recorder
from unlearning_jax.settings import Output

_BATCH = 64
_MODEL = "images"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """What is measured.

  Attributes:
    images: a folder of pictures, and of folders of them.
    metrics: names of metrics, with their options.
    base: the folder of the base's pictures, under the same names; "" for none.
    captions: a table of `file_name` and `text`, CSV, beside the pictures; ""
      for the folder's own `metadata.jsonl` or `metadata.csv`, if it has one.
    statistics: a stack, as t2i, of whose features `statistics.npz` is written
      into the run's folder, to be a `reference` of FID and KID; "" for none.
  """

  images: Output[str]
  metrics: Output[tuple[str, ...]] = ()
  base: Output[str] = ""
  captions: Output[str] = ""
  statistics: Output[str] = ""

  def __post_init__(self):
    folders.check("images", self.images)
    if not self.metrics and not self.statistics:
      raise ValueError(
        f"metrics: name some of {', '.join(metrics.reading('measure'))}"
      )
    if self.statistics:
      _features(self)
    for name in self.metrics:
      self._check(name, metrics.load(name))
    if self.base:
      folders.check("base", self.base)
      own, other = (set(folders.files(p)) for p in (self.images, self.base))
      for key, lacks in (("base", own - other), ("images", other - own)):
        if lacks:
          raise ValueError(
            f"{key}={getattr(self, key)!r}: lacks {len(lacks)} pictures that "
            f"the other folder has, such as {min(lacks)!r}: both must have the "
            "same names"
          )
    captions_of(self)

  def _check(self, name: str, metric: Metric):
    if "measure" not in metric.verbs or not metric.images:
      raise ValueError(
        f"metrics: {name!r} does not read pictures alone; a folder can be "
        f"measured by {', '.join(metrics.reading('measure'))}, and judged by "
        "unlearning-jax judge"
      )
    if BASE in metric.needs and not self.base:
      raise ValueError(
        f"base: {name!r} compares with the base's pictures; name their folder, "
        "--base=FOLDER"
      )
    if "prompt" in metric.needs and not captions_of(self):
      raise ValueError(
        f"captions: {name!r} needs the prompt of every picture; put a "
        f"metadata.jsonl with file_name and text into {self.images}, or give "
        "--captions=TABLE.csv"
      )


def captions_of(settings: Settings) -> dict[str, str]:
  """The caption of each picture by its name; {} without a table.

  Raises:
    ValueError: the table is not readable, or a picture is not in it.
  """
  root = pathlib.Path(settings.images)
  if settings.captions:
    listed = data.image_table(settings.captions)
  elif any((root / f"metadata.{e}").is_file() for e in ("jsonl", "csv")):
    listed = data.image_folder(root)
  else:
    return {}
  said = {str(example.image): example.caption for example in listed}
  names = folders.files(root)
  lacks = [name for name in names if str((root / name).resolve()) not in said]
  if lacks:
    raise ValueError(
      f"captions: {len(lacks)} of {len(names)} pictures have none, such as "
      f"{lacks[0]!r}"
    )
  return {name: said[str((root / name).resolve())] for name in names}


def run(settings: Settings, recorder: Recorder) -> dict[str, Any]:
  """Measures every picture that is not counted yet.

  Args:
    settings: what is measured.
    recorder: keeps it; a record that was begun is gone on with.

  Returns:
    The summary: `images`, how many were counted; `estimates`; `refused`, files
    and reasons; `metrics`, what each is made of.

  Raises:
    ValueError: no picture can be used, or the record is of other weights or of
      another reference.
  """
  loaded = {name: metrics.load(name) for name in settings.metrics}
  made_of = {name: metric.identity for name, metric in loaded.items()}
  recorder.record_provenance(
    devices=sharding.describe_devices(),
    inputs={f"metric {name}": said for name, said in made_of.items()},
  )
  tallies = Tallies(recorder, settings.metrics)
  _count(settings, recorder, tallies)
  rows = recorder.rows()
  refused = {r["id"]: r["refused"] for r in rows if "refused" in r}
  counted = [row for row in rows if "refused" not in row]
  if not counted:
    raise ValueError(
      f"images={settings.images!r}: none of its {len(rows)} files can be used: "
      f"{next(iter(refused.values()))}"
    )
  found = {
    "images": len(counted),
    "estimates": [
      one.plain()
      for name in tallies.estimates(counted).values()
      for one in name
    ],
    "refused": refused,
    "metrics": made_of,
  }
  if settings.statistics:
    where = recorder.path / "statistics.npz"
    references.write(where, settings.images, _features(settings))
  recorder.save_summary(found)
  recorder.mark_done()
  return found


def _features(settings: Settings) -> Features:
  return features.load("fid", features.NETWORK, settings.statistics)


def _count(settings: Settings, recorder: Recorder, tallies: Tallies):
  said, done = captions_of(settings), recorder.done_ids()
  names = folders.files(settings.images)
  left = [name for name in names if name not in done]
  roots = [settings.images, *([settings.base] if settings.base else [])]
  with recorder.progress("measure", len(names), done=len(done)) as bar:
    for part, read in folders.batches(roots, left, _BATCH):
      rows = [{"id": name, "model": _MODEL} for name in part]
      if isinstance(read, str):
        rows = [{**rows[0], "refused": read}]
      else:
        rows = [_row(row, said) for row in rows]
        _update(tallies, rows, *read)
      tallies.record(rows)
      bar.update(len(part))
    tallies.record([], now=True)


def _row(row: Mapping[str, Any], said: Mapping[str, str]) -> dict[str, Any]:
  prompt = said.get(row["id"], row["id"])
  return {**row, "group": "images", "prompt": prompt, "seed": 0}


def _update(
  tallies: Tallies,
  rows: Sequence[Mapping[str, Any]],
  images: np.ndarray,
  base: np.ndarray | None = None,
):
  if base is None:
    tallies.update(images, rows, save=False)
    return
  tallies.update(base, [{**row, "model": BASE} for row in rows], save=False)
  beside = zip(rows, base, strict=True)
  pairs = [{**row, "beside": image} for row, image in beside]
  tallies.update(images, pairs, save=False)


def text(found: Mapping[str, Any]) -> str:
  """A summary for a terminal."""
  lines = [f"{found['images']} pictures"]
  for plain in found["estimates"]:
    one = Estimate(**plain)
    value = f"{one.value:.4f}" if one.value is not None else "-"
    if one.low is not None and one.high is not None:
      value += f" [{one.low:.4f}, {one.high:.4f}]"
    said = one.failed or one.method
    lines.append(f"  {one.name:36} {value}  n={one.n}; {said}")
  if found["refused"]:
    lines.append(f"  left out: {len(found['refused'])}")
    lines += [f"    {reason}" for reason in found["refused"].values()]
  return "\n".join(lines)
