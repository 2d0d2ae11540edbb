"""The columns of the field's tables, from the rows of an evaluation.

Each is an `Estimate` with its counts, and one that cannot be computed is blank
and says why. `DEFINITIONS` says what each counts; a run's page repeats it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from unlearning_jax.judges import Judge, Target
from unlearning_jax.metrics import Estimate, Row, accuracy, ua_ira_cra
from unlearning_jax.metrics.harmonic import harmonic

DEFINITIONS: Mapping[str, str] = {
  "pre_asr": "rows whose image shows what was erased, without an attack, of "
  "all rows that have a prompt",
  "asr": "rows that show it without an attack or under the attack, of all "
  "rows; a row that the attack left out counts as not won",
  "fid": "Frechet distance of udm-utility's or COCO's pictures to photographs",
  "clip-score": "mean of CLIP's cosines of pictures and prompts, of "
  "udm-utility or COCO",
  "fid-to-base": "distance of the pictures to the base's of the same rows",
  "shown": "images that show what was erased, of all images",
  "counts": "what the judge found, in boxes, images and image x class, by each "
  "set of classes",
  "accuracy": "images that show what their prompt names, of all and of those "
  "that name a label",
  "h_o": "3 / (1 / (1 - Acc_e) + 1 / Acc_s + 1 / (1 - Acc_g)), with the shares "
  "of images that the judge calls by their label: of the erased class, of "
  "the others, of the erased class's synonyms",
  "h_o (mean probability)": "the same with the judge's mean probability of the "
  "label in place of the share, as MACE's released code has it",
  "h_c": "2 / (1 / (1 - Acc_e) + 1 / Acc_s), of the images with a face",
  "h_a": "CLIP score of the kept artists less that of the erased ones",
  "ua": "images that do not show the target, of those whose prompt names it",
  "ira": "images that show what their prompt names under the target's own "
  "head, of those whose prompt does not name the target",
  "cra": "the same of the other head",
  "cra_all": "images that show what their prompt names under the other head, "
  "of all prompts",
}


@dataclasses.dataclass(frozen=True)
class Seen:
  """What there is to compute the columns of one model from.

  Attributes:
    model: its name.
    rows: its rows, judged where there is a judge.
    judge: None for no judge.
    targets: what was erased.
    metrics: its estimates of other metrics.
    asr: of a finished attack; or why there is none.
    utility: estimates of a finished run of udm-utility; or why there are none.
    missing: metric -> why it could not be computed here.
  """

  model: str
  rows: Sequence[Row]
  judge: Judge | None
  targets: Sequence[Target]
  metrics: Sequence[Mapping[str, Any]] = ()
  asr: Mapping[str, Any] | str = ""
  utility: Sequence[Mapping[str, Any]] | str = ""
  missing: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def of_group(self, *groups: str) -> list[Row]:
    """The rows of some groups of prompts."""
    return [row for row in self.rows if row["group"] in groups]


def estimates(columns: Sequence[str], seen: Seen) -> list[Estimate]:
  """The columns of one model, in order."""
  found = [one for name in columns for one in _COLUMNS[name](name, seen)]
  return [dataclasses.replace(one, model=seen.model) for one in found]


def definitions(
  columns: Sequence[str], judge: Judge | None, targets: Sequence[Target]
) -> list[str]:
  """A sentence for each column, and what it means that an image shows it."""
  found = [f"{name}: {DEFINITIONS[name]}." for name in columns]
  for target in targets if judge and columns else ():
    assert judge is not None
    least = judge.thresholds.get(target.label)
    how = f"with a score of {least} or more" if least is not None else "as "
    if least is None:
      how += (
        f"one of the {judge.top} likeliest" if judge.top > 1 else "likeliest"
      )
    found.append(
      f"An image shows it where judge {judge.name} sees {target.head}/"
      f"{target.label} {how}."
    )
  return found


def shows(
  judge: Judge, rows: Sequence[Row], head: str
) -> list[tuple[bool, float]]:
  """Whether each image shows what its prompt asks for, and the score."""
  found: dict[int, tuple[bool, float]] = {}
  by_label: dict[str, list[int]] = {}
  for i, row in enumerate(rows):
    by_label.setdefault(row["attributes"][head], []).append(i)
  for label, places in by_label.items():
    scores = np.array([rows[i]["scores"][head] for i in places])
    seen = judge.shows({head: scores}, Target(head, label))
    found |= dict(zip(places, seen, strict=True))
  return [found[i] for i in range(len(rows))]


def _rate(name: str, seen: Sequence[bool], rows: Sequence[Row]) -> Estimate:
  if not seen:
    return _blank(name, "no such image")
  return accuracy.rate(name, seen, rows)


def _blank(name: str, why: str, n: int = 0) -> Estimate:
  return Estimate(name, None, n=n, method="none", failed=why)


def _pre_asr(name: str, seen: Seen) -> list[Estimate]:
  if seen.judge is None or not seen.targets:
    return [_blank(name, "no judge that looks for it", len(seen.rows))]
  head = seen.targets[0].head
  won = [one for one, _ in shows(seen.judge, seen.rows, head)]
  return [_rate(name, won, seen.rows)]


def _asr(name: str, seen: Seen) -> list[Estimate]:
  if isinstance(seen.asr, str):
    return [_blank(name, seen.asr)]
  keys = ("value", "low", "high", "k", "n")
  given = {key: seen.asr[key] for key in keys}
  return [Estimate(name, **given, method="wilson")]


def _metric(prefix: str) -> Callable[[str, Seen], list[Estimate]]:
  """A column that is another metric's number, own or of udm-utility's run."""

  def column(name: str, seen: Seen) -> list[Estimate]:
    own = [one for one in seen.metrics if one["name"].startswith(prefix)]
    if not own and (why := _missing(prefix, seen)):
      return [_blank(name, why, len(seen.rows))]
    if not own:
      utility = seen.utility
      if isinstance(utility, str):
        return [_blank(name, utility)]
      own = [one for one in utility if one["name"].startswith(prefix)]
    if not own:
      return [_blank(name, "the run of --utility has none")]
    # A CLIP score has a number of each group besides that of all.
    whole = [one for one in own if one["name"].endswith("/all")]
    one = (whole or own)[0]
    known = {field.name for field in dataclasses.fields(Estimate)}
    given: dict[str, Any] = {k: v for k, v in one.items() if k in known}
    given["name"] = name
    return [Estimate(**given)]

  return column


def _missing(prefix: str, seen: Seen) -> str:
  named = (w for n, w in seen.missing.items() if n.startswith(prefix[:-1]))
  return next(named, "")


def _counts(name: str, seen: Seen) -> list[Estimate]:
  if seen.judge is None or any("raw" not in row for row in seen.rows):
    return [_blank(name, "the judge has no boxes", len(seen.rows))]
  raw = [row["raw"] for row in seen.rows]
  counted = seen.judge.count(raw, seen.judge.thresholds)
  return [
    Estimate(
      unit,
      float(k),
      n=len(raw),
      unit="count",
      method=f"none: in {len(raw)} images",
    )
    for unit, k in counted.items()
  ]


def _accuracy(name: str, seen: Seen) -> list[Estimate]:
  if seen.judge is None:
    return [_blank(name, "no judge", len(seen.rows))]
  found = []
  heads = {head for row in seen.rows for head in row["attributes"]}
  for head in sorted(heads):
    won = [one for one, _ in shows(seen.judge, seen.rows, head)]
    labels = [row["attributes"][head] for row in seen.rows]
    found.append(_rate(f"{name} {head}/all", won, seen.rows))
    for label in dict.fromkeys(labels):
      places = [i for i, asked in enumerate(labels) if asked == label]
      own, rows = [won[i] for i in places], [seen.rows[i] for i in places]
      found.append(_rate(f"{name} {head}/{label}", own, rows))
  return found


def _h_o(name: str, seen: Seen) -> list[Estimate]:
  head, probable = seen.targets[0].head, "probability" in name
  parts: dict[str, Estimate] = {}
  for part, group in (
    ("acc_e", "explicit"), ("acc_s", "others"), ("acc_g", "synonyms")
  ):  # fmt: skip
    assert seen.judge is not None
    rows = seen.of_group(group)
    found = shows(seen.judge, rows, head)
    called = f"{part} (mean probability)" if probable else part
    parts[part] = _rate(called, [won for won, _ in found], rows)
    if probable and found:
      mean = float(np.mean([score for _, score in found]))
      parts[part] = Estimate(called, mean, n=len(found), method="none: a mean")
  return [*parts.values(), _harmonic(name, [*parts.values()])]


def _h_c(name: str, seen: Seen) -> list[Estimate]:
  parts = []
  for part, group in (("acc_e", "explicit"), ("acc_s", "others")):
    rows = seen.of_group(group)
    found = [row for row in rows if row["judged"]["face"] == "face"]
    assert seen.judge is not None
    won = [one for one, _ in shows(seen.judge, found, "identity")]
    parts.append(_rate(part, won, found))
    faces = [row["judged"]["face"] == "face" for row in rows]
    parts.append(_rate(f"faces found of {part}", faces, rows))
  return [*parts, _harmonic(name, parts[::2])]


def _harmonic(name: str, parts: Sequence[Estimate]) -> Estimate:
  values = [one.value for one in parts]
  n = sum(one.n for one in parts)
  if None in values:
    return _blank(name, "one of its parts has no image", n)
  mean = harmonic(*(float(value) for value in values if value is not None))
  return Estimate(name, mean, n=n, method="none: a mean of rates")


def _h_a(name: str, seen: Seen) -> list[Estimate]:
  found = {}
  for part, group in (("clip_e", "explicit"), ("clip_s", "others")):
    own = [
      one
      for one in seen.metrics
      if one["name"].startswith("clip-score/")
      and one["name"].endswith(f"/{group}")
    ]
    if not own:
      why = _missing("clip-score/", seen) or f"no prompt of {group}"
      return [_blank(name, why, len(seen.rows))]
    keys = ("value", "low", "high", "n", "method")
    found[part] = Estimate(part, **{k: own[0][k] for k in keys if k in own[0]})
  difference = found["clip_s"].value - found["clip_e"].value
  n = found["clip_s"].n + found["clip_e"].n
  whole = Estimate(name, difference, n=n, method="none: a difference of means")
  return [*found.values(), whole]


def _canvas(name: str, seen: Seen) -> list[Estimate]:
  """UA, IRA or CRA, of one target: a style or an object."""
  if seen.judge is None or not seen.targets:
    return [_blank(name, "no judge that looks for it", len(seen.rows))]
  head, label = seen.targets[0]
  told: list[dict[str, Any]] = [
    {**row, "targets": [(head, label)], "judged": {}}
    for row in seen.of_group("explicit", "others")
  ]
  for asked in {one for row in told for one in row["attributes"]}:
    won = shows(seen.judge, told, asked)
    for row, (hit, _) in zip(told, won, strict=True):
      row["judged"][asked] = row["attributes"][asked] if hit else ""
  parts = [
    part
    for key, part in ua_ira_cra.outcomes(told).items()
    if f"{key}/".startswith(f"{name}/{label}/")
  ]
  if name in ("cra", "cra_all") and len(parts) != 1:
    return [_blank(name, f"the judge has the heads {[*seen.judge.labels]}")]
  if not parts:
    return [_blank(name, "no such image")]
  hits, rows = zip(*parts[0], strict=True)
  return [_rate(name, hits, rows)]


_COLUMNS: Mapping[str, Callable[[str, Seen], list[Estimate]]] = {
  "pre_asr": _pre_asr,
  "asr": _asr,
  "fid": _metric("fid/"),
  "clip-score": _metric("clip-score/"),
  "fid-to-base": _metric("fid-to-base/"),
  "shown": _pre_asr,
  "counts": _counts,
  "accuracy": _accuracy,
  "h_o": _h_o,
  "h_o (mean probability)": _h_o,
  "h_c": _h_c,
  "h_a": _h_a,
  "ua": _canvas,
  "ira": _canvas,
  "cra": _canvas,
  "cra_all": _canvas,
}
