"""The page of a resurgence study: curves, heat map, tables."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from unlearning_jax.metrics.study import Condition
from unlearning_jax.report import colors, sections
from unlearning_jax.report.charts import Point, curves, heat_map
from unlearning_jax.report.markup import (
  Html,
  element,
  join,
  named,
  scroll,
  table,
)
from unlearning_jax.report.page import page, subjects

_SETS = {
  "in": "same kind",
  "near": "nearest classes",
  "far": "farthest classes",
  "out": "another kind",
  "same": "the erased itself",
  "control": "learning rate 0",
}
_PREDICTORS = {
  "relative_change": "size of the erasure, |D| / |W|",
  "key_value_share": "share of the erasure in keys and values",
  "prompt_change": "change of erased keys and values",
  "similarity": "nearness of tuning classes, CLIP cosine",
  "overlap": "overlap of tuning captions and erased prompts",
  "overlap_centered": "overlap, without what all prompts share",
  "pull": "cosine of the first tuning step and the way back",
  "synonyms_left": "synonyms that still worked after the erasure",
  "reversion": "reversion ratio",
  "moved": "distance moved, |W_T - W'| / |D|",
  "reversion_prompt": "reversion ratio on erased prompts",
  "output_gap": "gap of keys and values on erased prompts",
  "noise_gap": "gap of predicted noise on erased prompts",
}
Curve = Mapping[str, Any]


def render(document: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
  """The page, for `report.html`.

  Args:
    document: `title`, `threshold`, `cells`, `failed`, `conditions` of
      `metrics.study.summarize`, `predictors` of `metrics.study`.
    provenance: as `Workdir.record_provenance` writes it.
  """
  conditions = [c for c in document["conditions"] if c["defined"]]
  undefined = [c for c in document["conditions"] if not c["defined"]]
  return page(
    document["title"],
    element("p", _verdict(document), class_="verdict"),
    element(
      "p",
      "R_norm is 0 if the concept stayed away, and 1 if it is back as if never "
      "erased. Every model draws the same prompts from the same noise. Bands "
      "and brackets are 95 % intervals of a bootstrap over prompts, never "
      "narrower than Wilson's for the prompts that changed. They hold for "
      "these models; the median and its largest deviation show how far seeds "
      "lie apart.",
      class_="note",
    ),
    _heat(conditions),
    _curves(conditions),
    _defenses(conditions),
    _predictors(document["predictors"]),
    _every(document["conditions"], document["threshold"]),
    _metrics(document["conditions"]),
    _missing(undefined, document["failed"]),
    sections.provenance(provenance),
    first=subjects(
      _order(document["conditions"], "method"),
      "",
      sections.fingerprint(provenance),
      _order(document["conditions"], "concept"),
    ),
  )


def printed(document: Mapping[str, Any]) -> str:
  """The summary for the terminal."""
  lines = [f"{'':42}{'erased':>8}  R_norm by name, then steps"]
  for one in document["conditions"]:
    first, *rest = one["steps"]
    cells = [f"{first['groups']['explicit']['value']:8.2f}"]
    for point in rest:
      back = point["resurgence"]["explicit"]
      cells.append(f"{point['step']:>5}: {_estimate(back)}")
    lines.append(f"{one['condition']:42}" + "".join(cells))
  counts = document["cells"]
  lines.append(
    f"{counts['measured']} of {counts['planned']} cells measured, "
    f"{len(document['failed'])} failed"
  )
  failed = document["failed"]
  return "\n".join(
    [*lines, *(f"failed: {row['cell']}: {row['why']}" for row in failed)]
  )


def _of(curve: Curve) -> Condition:
  return Condition.parse(curve["condition"])


def _verdict(document: Mapping[str, Any]) -> str:
  innocent = [
    c
    for c in document["conditions"]
    if c["defined"] and _of(c).tuning_set not in ("same", "control")
    and _of(c).defense == "none"
  ]  # fmt: skip
  back = [c for c in innocent if c["revival"] is not None]
  return (
    f"{len(back)} of {len(innocent)} runs on innocent data without a defense "
    f"brought R_norm to {document['threshold']:g} or more; "
    f"{document['cells']['measured']} of {document['cells']['planned']} runs "
    "are measured."
  )


def _point(entry: Mapping[str, Any]) -> Point | None:
  back = entry["resurgence"]["explicit"]
  return back and Point(entry["step"], *(back[k] for k in Point._fields[1:]))


def _order(conditions: Iterable[Curve], part: str) -> list[str]:
  return list(dict.fromkeys(getattr(_of(c), part) for c in conditions))


def _plain(conditions: Iterable[Curve]) -> list[Curve]:
  return [c for c in conditions if _of(c).defense == "none"]


def _heat(conditions: Sequence[Curve]) -> Html:
  found = []
  for algorithm in _order(conditions, "algorithm"):
    own = [c for c in _plain(conditions) if _of(c).algorithm == algorithm]
    cells = {}
    for c in own:
      row = f"{_of(c).method} of {_of(c).concept}"
      cells[row, _SETS[_of(c).tuning_set]] = _point(c["steps"][-1])
    if not cells:
      continue
    names = [
      f"{method} of {concept}"
      for concept in _order(own, "concept")
      for method in _order(own, "method")
    ]
    rows = [name for name in names if any(row == name for row, _ in cells)]
    columns = [s for s in _SETS.values() if any(c == s for _, c in cells)]
    found += [
      element("h3", f"{algorithm}, at the last step"),
      scroll("What came back", heat_map(rows, columns, cells)),
    ]
  return join(
    element("h2", "What came back, by erasure and tuning set"), *found
  )


def _curves(conditions: Sequence[Curve]) -> Html:
  methods = _order(conditions, "method")
  classes = colors.classes(methods)
  found: list[Any] = [element("h2", "When it came back: prompts that name it")]
  key = (named(method, classes[method]) for method in methods)
  found.append(element("p", *key, class_="legend"))
  for concept in _order(conditions, "concept"):
    panels = {}
    for c in _plain(conditions):
      own = _of(c)
      if own.concept == concept:
        title = f"{own.algorithm}, {_SETS[own.tuning_set]}"
        points = [p for e in c["steps"] if (p := _point(e))]
        panels.setdefault(title, {})[own.method] = points
    drawn = (
      element("figure", curves(title, series, classes))
      for title, series in sorted(panels.items())
    )
    if panels:
      found += [element("h3", concept), element("div", *drawn, class_="panels")]
  return join(*found)


def _defenses(conditions: Sequence[Curve]) -> Html:
  guarded = [c for c in conditions if _of(c).defense != "none"]
  by_name = {c["condition"]: c for c in conditions}
  rows = []
  for c in guarded:
    own = _of(c)
    run, kind = own.run, own.defense
    plain = by_name.get(str(own.undefended))
    for name, one in (("none", plain), (kind, c)):
      if one is not None:
        last = one["steps"][-1]
        rows.append(
          _row(
            run if name == "none" else "", name,
            _estimate(last["resurgence"]["explicit"]),
            *_change(last.get("defended"), "explicit"),
            _rate(one["steps"][0]["groups"]["tuned"]),
            _rate(last["groups"]["tuned"]), _rate(last["groups"]["others"]),
          )
        )  # fmt: skip
  if not rows:
    return Html()
  return join(
    element("h2", "Defenses, and their cost to the benign task"),
    element(
      "p",
      "Of the prompts that name the concept: images that show it only without "
      "the defense (fewer), and only with it (more). p is McNemar's, not "
      "corrected for the number of tests.",
      class_="note",
    ),
    _grid(
      (
        "run",
        "defense",
        "R_norm",
        "fewer, more",
        "p",
        "tuned concept, before",
        "after",
        "others",
      ),
      rows,
    ),
  )


def _predictors(found: Sequence[Mapping[str, Any]]) -> Html:
  rows = [
    _row(
      _PREDICTORS[p["name"]],
      p["among"],
      "before tuning" if p["when"] == "before" else "first checkpoint",
      f"{p['value']:+.2f} [{p['low']:+.2f}, {p['high']:+.2f}]",
      p["n"],
    )
    for p in found
  ]
  if not rows:
    return Html()
  return join(
    element("h2", "What predicts it"),
    element(
      "p",
      "Spearman's rank correlation with the last R_norm, over runs on "
      "innocent data without a defense. The bootstrap draws erasures with all "
      "their runs. Among all erasures a predictor may only separate closed "
      "forms from trained ones, so each kind also has its own rows.",
      class_="note",
    ),
    _grid(("predictor", "among", "known", "rank correlation", "runs"), rows),
  )


def _every(conditions: Sequence[Curve], threshold: float) -> Html:
  rows = []
  for c in conditions:
    first, last = c["steps"][0], c["steps"][-1]
    back = [
      f"{e['step']}: {_estimate(e['resurgence']['explicit'])}"
      for e in c["steps"][1:]
    ]
    spread = "–"
    # One seed has no spread, which differs from a spread of 0.
    if last["median"] is not None and len(c["seeds"]) > 1:
      spread = f"{last['median']:.2f} ± {last['deviation']:.2f}"
    rows.append(
      _row(
        c["condition"], len(c["seeds"]), _rate(c["base"]["explicit"]),
        _rate(first["groups"]["explicit"]), _rate(last["groups"]["explicit"]),
        join(*(element("div", text) for text in back)), spread,
        _arrow(first, last, "synonyms"), _arrow(first, last, "paraphrases"),
        _arrow(first, last, "others"), _arrow(first, last, "tuned"),
        "never" if c["revival"] is None else c["revival"],
        _early(c["early"]),
        "–" if c["area"] is None else f"{c['area']:.2f}",
        _seeds(first, last, "explicit"), _seeds(first, last, "words"),
        *_change(last.get("change"), "words"),
      )
    )  # fmt: skip
  head = (
    "run", "seeds", "base", "erased", "tuned", "R_norm by step",
    "median ± max dev", "synonyms", "paraphrases", "others", "tuned concept",
    f"step of R_norm ≥ {threshold:g}", "share of it at an earlier step",
    "mean R_norm over log(1 + step)", "by name, seed by seed",
    "synonyms and paraphrases, seed by seed", "lost, gained of these", "p",
  )  # fmt: skip
  return join(
    element("h2", "Every condition"),
    element(
      "p",
      "Seed by seed: each seed's right images, before and after tuning. p is "
      "McNemar's, over all seeds; results.csv has it for every group and step.",
      class_="note",
    ),
    _grid(head, rows),
  )


def _metrics(curves: Sequence[Curve]) -> Html:
  """The user's own metrics, if there are any."""
  rows = [
    _row(
      c["condition"],
      m["model"],
      m["name"],
      _number(m) + (f" {m['unit']}" if m["unit"] else ""),
      m["n"],
      m["failed"],
    )
    for c in curves
    for m in c.get("metrics", ())
  ]
  if not rows:
    return Html()
  head = ("run", "model", "metric", "value", "n", "")
  return join(element("h2", "Metrics"), _grid(head, rows))


def _number(metric: Mapping[str, Any]) -> str:
  if metric["value"] is None:
    return "undefined"
  text = f"{metric['value']:.4g}"
  if metric["low"] is None:
    return text
  return f"{text} [{metric['low']:.4g}, {metric['high']:.4g}]"


def _missing(
  undefined: Sequence[Curve], failed: Sequence[Mapping[str, str]]
) -> Html:
  rows = [
    _row(c["condition"], "the erasure removed almost nothing")
    for c in undefined
  ]
  rows += [_row(f["cell"], f["why"]) for f in failed]
  if not rows:
    return Html()
  return join(element("h2", "Undefined or failed"), _grid(("run", "why"), rows))


# --- Pieces ---


def _early(early: Mapping[str, Any] | None) -> str:
  if early is None or early["share"] is None:
    return "–"
  return f"{early['share']:.2f} by {early['step']}"


def _grid(head: Sequence[str], rows: Sequence[Html]) -> Html:
  return table("Numbers", head, rows, "plain dense")


def _row(first: object, *cells: object) -> Html:
  return element(
    "tr", element("th", first), *(element("td", cell) for cell in cells)
  )


def _estimate(back: Mapping[str, float] | None) -> str:
  if back is None:
    return "undefined"
  return "{value:.2f} [{low:.2f}, {high:.2f}]".format(**back)


def _rate(rate: Mapping[str, float]) -> str:
  return f"{rate['value']:.2f} ({rate['k']:.0f}/{rate['n']:.0f})"


def _change(changes: Mapping[str, Any] | None, group: str) -> tuple[str, str]:
  """Images lost and gained, and McNemar's p."""
  if changes is None:
    return "", ""
  found = changes[group]
  return f"{found['lost']}, {found['gained']}", f"{found['p']:.1g}"


def _seeds(first: Curve, last: Curve, group: str) -> str:
  before, after = (
    " ".join(map(str, x["groups"][group]["by_seed"])) for x in (first, last)
  )
  return f"{before} → {after}"


def _arrow(first: Curve, last: Curve, group: str) -> str:
  before, after = (x["groups"].get(group) for x in (first, last))
  if before is None or after is None:
    return "–"
  return f"{before['value']:.2f} → {after['value']:.2f}"
