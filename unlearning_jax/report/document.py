"""The data of a report, read from a run's folder or given as a dict.

The keys, also those of `summary.json`; all but `models` and `measures` may be
absent:

  title: the page's heading.
  erased: [{"head": "object", "class": "star"}], as the judge calls them.
  models: ["base", "UCE", "RECE"], those compared; the first is the base.
  measures: {model: [accuracy.Measure, or its fields as a list or dict]}.
  estimates: [fields of the `Estimate` of any other metric, with its `model`].
  changes: {model: [accuracy.Change, likewise]}, each against the base.
  pairs: [{"prompt", "group", "seed", "images": {model: path or uint8 array},
    "seen": {model: what the judge saw}, "unsafe": bool}]: one prompt and one
    noise under every model. Paths are relative to the run's folder; `seed`,
    `seen` and `unsafe` may be absent.
  collapse: {model: {"reasons": [sentences], "figures": {...}}}, see
    `metrics.collapse.reasons`.
  judge_errors: [fields of `metrics.judge_errors.errors`].
  diagnostics: {model: {name: number or text}}.
  notes: [sentences for the top of the page].
  heads: [the heads of everything else in the terminal's table].
  protocol: name and hash of the protocol.
  probe: figures and verdict of an erasure's probe, see `Probe.facts`.
  provenance: {"runs": [...]}, as `Workdir.record_provenance` writes it.
"""

import dataclasses
import difflib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from unlearning_jax import durable, renamed
from unlearning_jax.metrics.accuracy import ALL, Change, Measure
from unlearning_jax.report.pictures import open_image

Source = str | os.PathLike[str] | Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Document:
  """The keys above, measures and changes by model and name, as `read` does.

  Images' paths are relative to `root`.
  """

  models: Sequence[str]
  measures: Mapping[str, Mapping[str, Measure]]
  changes: Mapping[str, Mapping[str, Change]] = dataclasses.field(
    default_factory=dict
  )
  title: str = "Concept erasure"
  erased: Sequence[Mapping[str, str]] = ()
  estimates: Sequence[Mapping[str, Any]] = ()
  pairs: Sequence[Mapping[str, Any]] = ()
  collapse: Mapping[str, Mapping[str, Any]] = dataclasses.field(
    default_factory=dict
  )
  judge_errors: Sequence[Mapping[str, Any]] = ()
  diagnostics: Mapping[str, Mapping[str, Any]] = dataclasses.field(
    default_factory=dict
  )
  notes: Sequence[str] = ()
  heads: Sequence[str] = ()
  protocol: str = ""
  probe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  root: pathlib.Path = pathlib.Path()

  def row(self, name: str) -> list[Measure] | None:
    """A measure of every model, or None where one lacks it."""
    found = [self.measures[model].get(name) for model in self.models]
    return None if None in found else found  # pyright: ignore

  def collapsed(self, model: str) -> str:
    """Why a model has collapsed, in one sentence; "" for one that draws."""
    said = self.collapse.get(model, {}).get("reasons", ())
    return f"Collapsed: {'; '.join(said)}." if said else ""

  def names(self) -> list[str]:
    """The measures that every model has, in the base's order."""
    return [n for n in self.measures[self.models[0]] if self.row(n)]

  def image(self, value: str | np.ndarray) -> Image.Image:
    """An image of a pair.

    Raises:
      ValueError: a path that is missing or leaves the run's folder.
    """
    if isinstance(value, np.ndarray):
      return Image.fromarray(value)
    return open_image(self.root, value)


def read(source: Source) -> Document:
  """A document from a workdir with `summary.json`, or from a dict.

  Raises:
    ValueError: no summary, an unknown or missing key, or a model without
      measures or with a pair that lacks its image.
  """
  root = pathlib.Path()
  if isinstance(source, Mapping):
    keys = dict(source)
  else:
    root = pathlib.Path(source)
    if not (root / "summary.json").is_file():
      raise ValueError(f"report: {root} holds no summary.json; has it run?")
    with durable.explaining(root / "summary.json"):
      keys = renamed.summary(durable.read_json(root / "summary.json"))
    if (root / "provenance.json").is_file():
      keys["provenance"] = durable.read_json(root / "provenance.json")
  with durable.explaining(root / "summary.json"):
    _check(keys)
    keys["measures"] = _by_name(Measure, keys["measures"])
    keys["changes"] = _by_name(Change, keys.get("changes", {}))
    return Document(**keys, root=root)


def label(group: str) -> str:
  """A group of prompts in words: `synonyms` is "by a synonym"."""
  words = {
    "explicit": "by name",
    "synonyms": "by a synonym",
    "paraphrases": "by a paraphrase",
    "implied": "by context alone",
    "others": "everything else",
    "table": "by the table's prompts",
    ALL: "all prompts",
  }
  return words.get(group, group)


def _by_name(
  kind: type[Measure] | type[Change], models: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
  found = {}
  for model, numbers in models.items():
    plain = (
      [n[field] for field in kind._fields] if isinstance(n, Mapping) else n
      for n in numbers
    )
    found[model] = {number.name: number for number in map(kind._make, plain)}
  return found


def _check(source: Mapping[str, Any]):
  known = [f.name for f in dataclasses.fields(Document) if f.name != "root"]
  for key in source:
    if key not in known:
      near = difflib.get_close_matches(key, known, 1) or known
      raise ValueError(f"report: unknown key {key!r}; did you mean {near}?")
  for key in ("models", "measures"):
    if not source.get(key):
      raise ValueError(f"report: {key!r} is missing or empty")
  for model in source["models"]:
    if model not in source["measures"]:
      have = [*source["measures"]]
      raise ValueError(f"report: model {model!r} has no measures, only {have}")
    for pair in source.get("pairs", ()):
      if model not in pair["images"]:
        prompt = pair["prompt"]
        raise ValueError(f"report: model {model!r} has no image of {prompt!r}")
