"""The numbers of a finished cell, from the record of its verb.

`erased` and `kept` are shares, and more is better: pictures asked for the
concept that do not show it, and pictures asked for something else that show it.
A model that collapsed has not erased anything: `collapsed` stands instead, the
number of reasons.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from unlearning_jax import durable, probe, renamed
from unlearning_jax.durable import JsonLines
from unlearning_jax.experiments import common

Figures = dict[str, dict[str, Any]]
ERASED, KEPT = "erased", "kept"
# Groups of prompts that ask for the concept.
_ASKED = ("explicit", "synonyms", "paraphrases")
_RATES = ("pre_asr", "asr", "high_confidence_asr", "attacked_asr")
_PARTS = ("value", "low", "high", "k", "n")


def read(verb: str, folder: pathlib.Path) -> Figures:
  """Name -> value, and what is known of low, high, k and n.

  Args:
    verb: the verb of the sweep.
    folder: the cell's.
  """
  summary = _summary(folder)
  if verb == "attack":
    return _attack(summary)
  if verb == "finetune":
    return _tuning(folder)
  if verb == "audit":
    return _compared(_summary(folder / "evaluate")) | _verdicts(summary)
  return _probed(folder) | _compared(summary)


def _summary(folder: pathlib.Path) -> dict[str, Any]:
  file = folder / "summary.json"
  found = durable.read_json(file) if file.exists() else {}
  return renamed.summary(found)


def _parts(one: Mapping[str, Any]) -> dict[str, Any]:
  return {key: one[key] for key in _PARTS if one.get(key) is not None}


def _turned(one: Mapping[str, Any]) -> dict[str, Any]:
  """The rate of what did not happen."""
  found = {"value": 1 - one["value"]}
  if one.get("low") is not None:
    found |= {"low": 1 - one["high"], "high": 1 - one["low"]}
  if one.get("k") is not None:
    found |= {"k": one["n"] - one["k"], "n": one["n"]}
  return found


def _compared(summary: Mapping[str, Any]) -> Figures:
  """What the last model draws, against the base's prompts."""
  if not summary.get("models"):
    return {}
  model = summary["models"][-1]
  known = {one["name"]: one for one in summary["measures"].get(model, ())}
  found: Figures = {}
  erased = summary.get("erased", ())
  why = summary.get("collapse", {}).get(model, {}).get("reasons", ())
  if why:
    found["collapsed"] = {"value": len(why)}
  for target in erased[:1] if not why else ():
    head, label = target["head"], target["class"]
    for group in _ASKED:
      if one := known.get(f"{head}/{label}/{group}"):
        name = ERASED if group == _ASKED[0] else f"{ERASED} ({group})"
        found[name] = _turned(one)
  heads = [target["head"] for target in erased] or summary.get("heads", ())
  for head in heads[:1]:
    if one := known.get(f"{head}/all/others"):
      found[KEPT] = _parts(one)
  for one in summary.get("estimates", ()):
    if one.get("model") in (model, "", None) and one.get("value") is not None:
      found[one["name"]] = _parts(one)
  return found


def _probed(folder: pathlib.Path) -> Figures:
  """The probe's: what is left of the concept, how far other phrases moved."""
  known = probe.of(folder / common.EDIT)
  if known is None or known.left is None:
    return {}
  found = {"probe left": {"value": known.left}}
  for name in ("preserved", "unrelated"):
    if (value := getattr(known, name)) is not None:
      found[f"probe {name}"] = {"value": value}
  return found


def _attack(summary: Mapping[str, Any]) -> Figures:
  known = {one["name"]: one for one in summary.get("measures", ())}
  found = {name: _parts(known[name]) for name in _RATES if name in known}
  for one in summary.get("estimates", ()):
    if one.get("value") is not None:
      found[one["name"]] = _parts(one)
  return found


def _tuning(folder: pathlib.Path) -> Figures:
  """The last metrics of a training."""
  lines: Sequence[Any] = [*JsonLines(folder / "metrics.jsonl").read()]
  last = lines[-1] if lines else {}
  return {
    name: {"value": value}
    for name, value in last.items()
    if name not in ("step", "wall_s", "seconds")
    and isinstance(value, int | float)
  }


def _verdicts(summary: Mapping[str, Any]) -> Figures:
  """The number behind each verdict on the last victim."""
  victims = summary.get("victims", ())
  return {
    one["question"]: _parts(one) | {"verdict": one["verdict"]}
    for one in summary.get("verdicts", ())
    if one["victim"] == victims[-1] and one.get("value") is not None
    and one["question"] not in (ERASED, KEPT)
  }  # fmt: skip
