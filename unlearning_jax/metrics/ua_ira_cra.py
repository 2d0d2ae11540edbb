"""UnlearnCanvas's three accuracies of an erased style or object.

The images of a model that erased the label t of a head, as styles, and prompts
that ask for a style and an object each:

  ua    1 - accuracy on t, where prompts ask for t: unlearning accuracy
  ira   accuracy of the same head, where prompts ask for other labels of it:
        in-domain retain accuracy
  cra   accuracy of another head on the prompts of `ira`: cross-domain
        `cra_all` counts the prompts of `ua` too; the paper does not say which

A number's name is `ua/<t>`, `ira/<t>`, `cra/<t>/<other head>`. The published
tables have their means over all styles, or all objects, each erased alone.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from unlearning_jax import metrics
from unlearning_jax.metrics import Estimate, Images, Kept, Row, accuracy


def _update(state: Kept, images: Images, rows: Sequence[Row]) -> Kept:
  del images
  for row in rows:
    for key, remedy in (("judged", "set a judge"), ("targets", "set targets")):
      if key not in row:
        raise ValueError(
          f"metric ua_ira_cra: row {row['id']!r} has no {key}; {remedy}"
        )
  keys = ("targets", "attributes", "judged", "prompt", "repeat", "sample")
  return metrics.keep(
    state, rows, lambda row: {key: row[key] for key in keys if key in row}
  )


def outcomes(
  rows: Sequence[Mapping[str, Any]],
) -> dict[str, list[tuple[bool, Mapping[str, Any]]]]:
  """Each number's outcomes, with the rows that they are of.

  Args:
    rows: each with `targets` (pairs of head and label), `attributes` (head ->
      the label asked for, or None) and `judged` (head -> the label seen).
  """
  found = collections.defaultdict(list)
  for row in rows:
    asked, seen = row["attributes"], row["judged"]
    for head, label in row["targets"]:
      if asked.get(head) is None:
        continue
      own = asked[head] == label
      right = seen[head] == asked[head]
      name = f"ua/{label}" if own else f"ira/{label}"
      found[name].append((right != own, row))
      for other in asked:
        if other == head or asked[other] is None:
          continue
        crossed = (seen[other] == asked[other], row)
        found[f"cra_all/{label}/{other}"].append(crossed)
        if not own:
          found[f"cra/{label}/{other}"].append(crossed)
  return dict(found)


def _compute(state: Kept) -> list[Estimate]:
  found = []
  for model, rows in state.items():
    for name, part in outcomes([rows[i] for i in sorted(rows)]).items():
      hits, own = zip(*part, strict=True)
      one = accuracy.rate(name, hits, own)
      found.append(dataclasses.replace(one, model=model))
  return found


METRIC = metrics.Metric(
  "ua_ira_cra", dict, _update, metrics.unite, _compute, images=False,
  verbs=("evaluate",),
)  # fmt: skip
