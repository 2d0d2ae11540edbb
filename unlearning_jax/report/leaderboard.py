"""Finished evaluations of one protocol as one table, a line a model."""

import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from unlearning_jax import durable, pictures
from unlearning_jax.record import provenance, seal

# The columns of a line besides its numbers.
TEXTS = ("model", "run", "collapsed")


def lines(
  folders: Iterable[str | os.PathLike[str]],
) -> tuple[str, list[dict[str, Any]]]:
  """The protocol of finished runs, and a line for each of their models.

  A line maps a column to the fields of its `Estimate`. `collapsed` says why a
  model's numbers mean nothing; "" for a model that draws.

  Raises:
    ValueError: there is no run; one has not ended or has no protocol; or it has
      another protocol, base, image size, judge or metric than the first.
  """
  found, signed, made_of = [], {}, {}
  for folder in folders:
    path = pathlib.Path(folder)
    if not (path / "DONE").is_file() or not (path / "summary.json").is_file():
      raise ValueError(f"leaderboard: {path} is no finished run")
    seal.check(path)
    document = durable.read_json(path / "summary.json")
    if not document.get("protocol"):
      raise ValueError(f"leaderboard: {path} ran no protocol")
    with durable.explaining(path):
      signed[str(path)] = str(document["protocol"])
      made_of[str(path)] = _made_of(path, document)
      found += _lines_of(path, document)
  if not found:
    raise ValueError("leaderboard: give the folders of finished evaluations")
  first = next(iter(signed))
  for path, protocol in signed.items():
    if protocol != signed[first]:
      raise ValueError(
        f"leaderboard: {path} ran {protocol}, and {first} {signed[first]}: "
        "their numbers do not compare; give each protocol a table of its own"
      )
  _check_alike(made_of)
  return signed[first], found


def _lines_of(
  path: pathlib.Path, document: Mapping[str, Any]
) -> list[dict[str, Any]]:
  """A line for each model of a run."""
  named, found = durable.read_json(path / "config.json").get("columns", ()), []
  for model in document["models"]:
    own = [one for one in _numbers(document) if one["model"] == model]
    columns = {one["name"]: one for one in own if _is_of(one, named)}
    why = document.get("collapse", {}).get(model, {}).get("reasons", ())
    texts = dict(zip(TEXTS, (model, str(path), "; ".join(why)), strict=True))
    found.append({**texts, **columns})
  return found


def _made_of(
  path: pathlib.Path, document: Mapping[str, Any]
) -> dict[str, object]:
  """What decides a run's numbers besides its protocol, where it is recorded."""
  found: dict[str, object] = {}
  if (path / "provenance.json").is_file():
    runs = provenance.starts(path / "provenance.json")
    found["base"] = runs[0]["base_fingerprint"]
    found |= {f"judge {k}": v for k, v in runs[0]["judge_hashes"].items()}
    inputs = {k: v for run in reversed(runs) for k, v in run["inputs"].items()}
    found |= {k: v for k, v in inputs.items() if k.startswith("metric ")}
  shown = [one["images"] for one in document.get("pairs", ())]
  images = [path / image for one in shown for image in one.values()]
  if images and images[0].is_file():
    found["image size"] = pictures.read(images[0]).size
  return {key: value for key, value in found.items() if value}


def _check_alike(made_of: Mapping[str, Mapping[str, object]]):
  """Refuses runs of one protocol whose numbers do not compare all the same."""
  known: dict[str, tuple[str, object]] = {}
  for path, facts in made_of.items():
    for key, value in facts.items():
      other, was = known.setdefault(key, (path, value))
      if value != was:
        raise ValueError(
          f"leaderboard: {path} has another {key} than {other}: {value} and "
          f"{was}; their numbers do not compare. Evaluate both with the same, "
          "or give each a table of its own"
        )


def _numbers(document: Mapping[str, Any]) -> list[dict[str, Any]]:
  measures = [
    {**one, "model": model}
    for model, some in document["measures"].items()
    for one in some
  ]
  return [*document.get("estimates", ()), *measures]


def _is_of(one: dict[str, Any], columns: Iterable[str]) -> bool:
  """Whether a number belongs to the protocol's columns; all do without any."""
  names = [*columns]
  # "counts" and "accuracy" have several numbers, each with its own name.
  several = {"counts": one.get("unit") == "count"}
  return not names or any(
    one["name"] == name
    or one["name"].startswith(f"{name} ")
    or several.get(name)
    for name in names
  )
