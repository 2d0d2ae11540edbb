"""One base, several erased models, the same rows: the document and the table.

Rows are as `shapes.prompts.judged_images` gives them, with `stage` (which
model drew it) and an `id` of the form `stage/row`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from unlearning_jax.metrics import accuracy
from unlearning_jax.shapes import prompts as erasure

BASE = "before"


def document(
  rows: Iterable[Mapping[str, Any]],
  stages: Sequence[str],
  targets: Sequence[erasure.Target],
  shown: Iterable[str],
) -> dict[str, Any]:
  """What `report.document` describes, from all rows of a comparison.

  Args:
    rows: every row under every stage.
    stages: the models in order, the base first.
    targets: what was erased.
    shown: ids, without their stage, of the rows whose images are kept.
  """
  found: dict[str, dict[str, Mapping[str, Any]]] = {s: {} for s in stages}
  for row in rows:
    found[row["stage"]][row["id"].split("/", 1)[1]] = row
  base = found[stages[0]]
  # Every process adds its rows to its own file: the base's order rules.
  by_stage = {
    stage: [found[stage][i] for i in sorted(base)] for stage in stages
  }
  return {
    "erased": [{"head": t.head, "class": t.name} for t in targets],
    "stages": list(stages),
    "measures": {
      stage: [measure._asdict() for measure in accuracy.measure(ordered)]
      for stage, ordered in by_stage.items()
    },
    "changes": {
      stage: [
        change._asdict()
        for change in accuracy.compare(by_stage[stages[0]], by_stage[stage])
      ]
      for stage in stages[1:]
      if targets
    },
    "pairs": [
      _pair(row_id, {stage: found[stage][row_id] for stage in stages})
      for row_id in sorted(shown)
    ],
  }


def _pair(
  row_id: str, versions: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
  row = next(iter(versions.values()))
  return {
    **{key: row[key] for key in ("prompt", "group", "seed", "unsafe")},
    "images": {stage: f"images/{row_id}-{stage}.png" for stage in versions},
    "seen": {stage: _seen(version) for stage, version in versions.items()},
  }


def _seen(row: Mapping[str, Any]) -> str:
  """What the judge saw, in the words that matter for this row."""
  if "judged" not in row:
    return ""
  judged = row["judged"]
  kind = "identity" if judged["kind"] == "portrait" else "object"
  words = [judged[head] for head in (kind, "style")]
  words += ["hazard"] if judged["hazard"] == "hazard" else []
  return ", ".join(word for word in words if word != "plain")


def text_table(document: Mapping[str, Any]) -> str:
  """Accuracies for the terminal: what was erased, and everything else."""
  wanted = [
    f"{target['head']}/{target['class']}/{group}"
    for target in document["erased"]
    for group in ("explicit", "synonyms", "paraphrases", "implied")
  ]
  wanted += [f"{head}/all/others" for head in erasure.HEADS.values()]
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
  return "\n".join(lines)
