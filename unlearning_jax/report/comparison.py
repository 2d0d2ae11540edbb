"""One base, several models of it, the same rows: the document and the table.

Rows are judged, if there is a judge, and have `model` (which of them drew it)
and an `id` of the form `key(model)/row`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from unlearning_jax.judges import Target
from unlearning_jax.metrics import Estimate, accuracy

BASE = "base"


def key(model: str) -> str:
  """What ids of rows and names of images call a model.

  The base's have always been `before/...` and stay so: a record of any age can
  go on, and two records can be compared row by row.
  """
  return "before" if model == BASE else model


def document(
  rows: Iterable[Mapping[str, Any]],
  models: Sequence[str],
  targets: Sequence[Target],
  shown: Iterable[str],
  estimates: Mapping[str, Sequence[Estimate]],
  describe: Callable[[Mapping[str, str]], str] | None = None,
) -> dict[str, Any]:
  """Builds the document of `report.document` from a comparison's rows.

  Args:
    rows: every row of every model.
    models: their names in order, the base first.
    targets: what was erased.
    shown: ids, without the model, of the rows whose images are kept.
    estimates: metric -> its numbers.
    describe: labels of an image -> words.
  """
  found: dict[str, dict[str, Mapping[str, Any]]] = {m: {} for m in models}
  for row in rows:
    found[row["model"]][row["id"].split("/", 1)[1]] = row
  base = found[models[0]]
  # Each process adds its rows to its own file; sort them as the base's.
  by_model = {
    model: [found[model][i] for i in sorted(base)] for model in models
  }
  # To a metric the base is `base`, whatever pages call it.
  named = {"base": models[0]} | {model: model for model in models[1:]}
  measures: dict[str, list[dict[str, Any]]] = {m: [] for m in models}
  others = []
  for metric, numbers in estimates.items():
    for one in numbers:
      plain = one.plain()
      model = named.get(plain.pop("model", ""), "")
      if metric == "accuracy":
        measures[model].append(plain)
      else:
        others.append({**plain, "model": model})
  return {
    "erased": [{"head": t.head, "class": t.label} for t in targets],
    "models": list(models),
    "measures": measures,
    "changes": {
      model: [
        change._asdict()
        for change in accuracy.compare(by_model[models[0]], by_model[model])
      ]
      for model in models[1:]
      if targets
    },
    "pairs": [
      _pair(row_id, {m: found[m][row_id] for m in models}, describe)
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
    **{k: row[k] for k in ("prompt", "group", "seed", "unsafe")},
    "images": {m: f"images/{row_id}-{key(m)}.png" for m in versions},
    "seen": {
      model: describe(version["judged"]) if describe else ""
      for model, version in versions.items()
    },
  }


def shown_names(document: Mapping[str, Any]) -> list[str]:
  """The measures for the terminal: what was erased, then everything else."""
  wanted = [
    f"{target['head']}/{target['class']}/{group}"
    for target in document["erased"]
    for group in ("explicit", "synonyms", "paraphrases", "implied", "table")
  ]
  return wanted + [f"{head}/all/others" for head in document["heads"]]


def collapsed(document: Mapping[str, Any]) -> list[str]:
  """A sentence for each model that collapsed."""
  return [
    f"{model} collapsed: {'; '.join(found['reasons'])}"
    for model, found in document.get("collapse", {}).items()
    if found["reasons"]
  ]


def text_table(document: Mapping[str, Any]) -> str:
  """The table for the terminal: what was erased, everything else, metrics."""
  wanted = shown_names(document)
  models = document["models"]
  lines = [f"{'':32}" + "".join(f"{model:>22}" for model in models)]
  for name in wanted:
    cells = [
      f"{m['value']:.2f} [{m['low']:.2f}, {m['high']:.2f}]"
      for model in models
      for m in document["measures"][model]
      if m["name"] == name
    ]
    if cells:
      lines.append(f"{name:32}" + "".join(f"{cell:>22}" for cell in cells))
  for one in document.get("estimates", ()):
    value = f"– ({one.get('failed', '')})"
    if one["value"] is not None:
      value = f"{one['value']:.4g}"
    if one["low"] is not None:
      value += f" [{one['low']:.4g}, {one['high']:.4g}]"
    if one["k"] is not None:
      value += f" {one['k']}/{one['n']}"
    lines.append(f"{one['name']:32} {one['model']:>12} {value:>30}")
  lines += collapsed(document)
  for one in document.get("judge_errors", ()):
    for kind in ("false_positives", "misses"):
      if rate := one[kind]:
        name = f"{kind.replace('_', ' ')} of {one['class']} (base)"
        text = f"{rate['k']} of {rate['n']}"
        lines.append(f"{name:32} {'judge':>12} {text:>30}")
  return "\n".join(lines)
