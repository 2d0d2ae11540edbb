"""How often a judge sees each of its labels, whatever the prompts ask for.

A number's name is `seen head/label/group`, where the group may be `all`.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from unlearning_jax import metrics, statistics
from unlearning_jax.metrics import Estimate, Images, Kept, Row
from unlearning_jax.metrics.accuracy import ALL


def _update(state: Kept, images: Images, rows: Sequence[Row]) -> Kept:
  del images
  for row in rows:
    if "judged" not in row:
      raise ValueError(
        f"metric seen: row {row['id']!r} is not judged; set a judge"
      )
  return metrics.keep(state, rows, lambda r: [r["group"], dict(r["judged"])])


def _compute(state: Kept) -> list[Estimate]:
  everywhere = [seen for rows in state.values() for _, seen in rows.values()]
  # A label that only another model shows counts as 0 of n.
  labels = sorted({pair for seen in everywhere for pair in seen.items()})
  found = []
  for model, rows in state.items():
    groups: dict[str, list[Mapping[str, str]]] = {}
    for _, (group, seen) in sorted(rows.items()):
      for part in (group, ALL):
        groups.setdefault(part, []).append(seen)
    for group, all_seen in groups.items():
      for head, label in labels:
        name = f"seen {head}/{label or 'none'}/{group}"
        k, n = sum(seen[head] == label for seen in all_seen), len(all_seen)
        low, high = statistics.wilson(k, n)
        one = Estimate(name, k / n, low, high, k, n, method="wilson")
        found.append(dataclasses.replace(one, model=model))
  return found


METRIC = metrics.Metric(
  "seen",
  dict,
  _update,
  metrics.unite,
  _compute,
  images=False,
  # A folder of pictures that are measured has no judge.
  verbs=("attack", "evaluate", "resurgence"),
)
