"""One base, several erased models, the same rows: the document and the table.

Rows are judged, if there is a judge, and have `stage` (which model drew it) and
an `id` of the form `stage/row`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from unlearning_jax.judges import Target
from unlearning_jax.metrics import Estimate, accuracy

BASE = "before"


def document(
  rows: Iterable[Mapping[str, Any]],
  stages: Sequence[str],
  targets: Sequence[Target],
  shown: Iterable[str],
  estimates: Mapping[str, Sequence[Estimate]],
  describe: Callable[[Mapping[str, str]], str] | None = None,
) -> dict[str, Any]:
  """What `report.document` describes, from all rows of a comparison.

  Args:
    rows: every row under every stage.
    stages: the models in order, the base first.
    targets: what was erased.
    shown: ids, without their stage, of the rows whose images are kept.
    estimates: metric -> its numbers; the base's rows had `base` as model.
    describe: puts what a judge saw in an image into words.
  """
  found: dict[str, dict[str, Mapping[str, Any]]] = {s: {} for s in stages}
  for row in rows:
    found[row["stage"]][row["id"].split("/", 1)[1]] = row
  base = found[stages[0]]
  # Every process adds its rows to its own file: the base's order rules.
  by_stage = {
    stage: [found[stage][i] for i in sorted(base)] for stage in stages
  }
  # A metric calls the base by its part, a page by when it drew.
  named = {"base": stages[0]} | {stage: stage for stage in stages[1:]}
  measures: dict[str, list[dict[str, Any]]] = {s: [] for s in stages}
  others = []
  for metric, numbers in estimates.items():
    for one in numbers:
      plain = one.plain()
      model = named.get(plain.pop("model", ""), "")
      if metric == "accuracy":
        measures[model].append(plain)
      else:
        others.append({**plain, "stage": model})
  return {
    "erased": [{"head": t.head, "class": t.label} for t in targets],
    "stages": list(stages),
    "measures": measures,
    "changes": {
      stage: [
        change._asdict()
        for change in accuracy.compare(by_stage[stages[0]], by_stage[stage])
      ]
      for stage in stages[1:]
      if targets
    },
    "pairs": [
      _pair(row_id, {s: found[s][row_id] for s in stages}, describe)
      for row_id in sorted(shown)
    ],
  } | ({"estimates": others} if others else {})


def _pair(
  row_id: str,
  versions: Mapping[str, Mapping[str, Any]],
  describe: Callable[[Mapping[str, str]], str] | None,
) -> dict[str, Any]:
  row = next(iter(versions.values()))
  return {
    **{key: row[key] for key in ("prompt", "group", "seed", "unsafe")},
    "images": {stage: f"images/{row_id}-{stage}.png" for stage in versions},
    "seen": {
      stage: describe(version["judged"]) if describe else ""
      for stage, version in versions.items()
    },
  }


def shown_names(document: Mapping[str, Any]) -> list[str]:
  """The measures that a terminal shows: what was erased, everything else."""
  wanted = [
    f"{target['head']}/{target['class']}/{group}"
    for target in document["erased"]
    for group in ("explicit", "synonyms", "paraphrases", "implied")
  ]
  return wanted + [f"{head}/all/others" for head in document["heads"]]


def text_table(document: Mapping[str, Any]) -> str:
  """Numbers for the terminal: what was erased, everything else, metrics."""
  wanted = shown_names(document)
  stages = document["stages"]
  lines = [f"{'':32}" + "".join(f"{stage:>22}" for stage in stages)]
  for name in wanted:
    cells = [
      f"{m['value']:.2f} [{m['low']:.2f}, {m['high']:.2f}]"
      for stage in stages
      for m in document["measures"][stage]
      if m["name"] == name
    ]
    if cells:
      lines.append(f"{name:32}" + "".join(f"{cell:>22}" for cell in cells))
  for one in document.get("estimates", ()):
    value = "–" if one["value"] is None else f"{one['value']:.4g}"
    if one["low"] is not None:
      value += f" [{one['low']:.4g}, {one['high']:.4g}]"
    lines.append(f"{one['name']:32} {one['stage']:>12} {value:>30}")
  return "\n".join(lines)
